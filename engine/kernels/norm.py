"""RMSNorm in one pass over each row, where transformers makes six calls."""

from typing import Protocol

from torch import Tensor, nn

from engine.kernels.native import Library
from engine.kernels.program import Norm, Program, X, Y, run_by_row

PLAIN = ("DeepseekV2RMSNorm", "DeepseekV3RMSNorm", "LlamaRMSNorm", "Qwen3RMSNorm")


class RMSNorm(Protocol):
    """An RMSNorm of transformers."""

    weight: nn.Parameter
    variance_epsilon: float


class NativeRMSNorm(nn.Module):
    """Replaces any transformers RMSNorm that multiplies by `weight` unchanged."""

    def __init__(self, norm: RMSNorm, library: Library) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon
        self.size = self.weight.numel()
        self._program = Program(library, [self.norm(X, Y)], width=0)

    def norm(self, x: int, y: int, wait: bool = True) -> Norm:
        """Return the norm as an operation."""
        return Norm(x=x, y=y, D=self.size, weight=self.weight, eps=self.variance_epsilon, wait=wait)

    def forward(self, x: Tensor) -> Tensor:
        return run_by_row(self._program, x, self.size)
