"""RMSNorm in one pass over each row; transformers takes six calls."""

from typing import Any

from torch import Tensor, nn

from engine.kernels.native import Library
from engine.kernels.program import Norm, Program, X, Y, rows_through

PLAIN = ("DeepseekV2RMSNorm", "DeepseekV3RMSNorm", "LlamaRMSNorm", "Qwen3RMSNorm")


class NativeRMSNorm(nn.Module):
    """In the place of any transformers RMSNorm that multiplies by `weight` as it is."""

    def __init__(self, norm: Any, library: Library) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon
        self.size = self.weight.numel()
        self._program = Program(library, [self.norm(X, Y)], width=0)

    def norm(self, x: int, y: int, wait: bool = True) -> Norm:
        """As an operation."""
        return Norm(x=x, y=y, D=self.size, weight=self.weight, eps=self.variance_epsilon, wait=wait)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> the same"""
        return rows_through(self._program, x, self.size)
