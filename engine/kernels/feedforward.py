"""What comes after attention in a decoder layer: an MLP, or experts with their router and a shared MLP.

T = tokens, k = experts of a token, E = experts, D = hidden size, I = inner size
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.linear import NativeLinear, Packed
from engine.kernels.native import Library, lossless, suits
from engine.kernels.program import NOWHERE, Columns, Experts, Gate, Op, Program, Route, X, Y, rows_through


class NativeMLP(nn.Module):
    """SiLU of the gate times up, then down."""

    def __init__(self, mlp: Any, library: Library) -> None:
        super().__init__()
        self.gate_proj: NativeLinear = mlp.gate_proj
        self.up_proj: NativeLinear = mlp.up_proj
        self.down_proj: NativeLinear = mlp.down_proj
        columns = Columns()
        self._program = Program(library, self.operations(X, Y, NOWHERE, columns), columns.width)

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """y = mlp(x) + add."""
        inner = self.gate_proj.out_features
        gate, up = columns.take(inner), columns.take(inner)
        return [
            self.gate_proj.product(x, gate),
            self.up_proj.product(x, up, wait=False),
            Gate(x=gate, up=up, I=inner),
            self.down_proj.product(gate, y, add),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same"""
        return rows_through(self._program, x, self.down_proj.out_features)


class NativeMoE(nn.Module):
    """Tokens sorted by expert, each expert's matrices read once; then the experts that all share."""

    def __init__(self, moe: Any, library: Library) -> None:
        super().__init__()
        experts, router = moe.experts, moe.gate
        self.gate = Packed(router.weight.detach().float(), library)
        self.shared_experts: NativeMLP = moe.shared_experts
        self.sigmoid = type(router).__name__ == "DeepseekV3TopkRouter"
        self.bias: Tensor | None = router.e_score_correction_bias.detach().float() if self.sigmoid else None
        self.to_one = self.sigmoid and router.norm_topk_prob
        self.groups: int
        self.best_groups: int
        limited = self.sigmoid or router.topk_method == "group_limited_greedy"
        self.groups, self.best_groups = (router.num_group, router.topk_group) if limited else (1, 1)
        self.each, self.scale = router.top_k, router.routed_scaling_factor
        self.num_experts, double, self.hidden = experts.gate_up_proj.shape
        self.inner = double // 2
        matrices = experts.gate_up_proj.detach(), experts.down_proj.detach()
        dtype = torch.bfloat16 if all(map(lossless, matrices)) else torch.float32
        self.experts = nn.Module()  # the name by which a layer's experts are known
        self.experts.up, self.experts.down = (Packed(matrix, library, dtype) for matrix in matrices)
        moe.experts = nn.Identity()  # whoever still holds the old module must not hold the weights
        columns = Columns()
        self._program = Program(library, self.operations(X, Y, NOWHERE, columns), columns.width)

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """y = experts(x) + shared(x) + add."""
        logits, chosen, share = columns.take(self.num_experts), columns.take(2 * self.each), columns.take(self.each)
        up: Any = self.experts.up
        down: Any = self.experts.down
        route = Route(
            x=logits,
            chosen=chosen,
            share=share,
            E=self.num_experts,
            k=self.each,
            groups=self.groups,
            best_groups=self.best_groups,
            sigmoid=self.sigmoid,
            of_a_group=min(2, self.num_experts // self.groups) if self.sigmoid else 1,
            to_one=self.to_one,
            bias=self.bias,
            scale=self.scale,
        )
        experts = Experts(
            x=x,
            chosen=chosen,
            share=share,
            middle=columns.take(2 * self.inner * self.each),
            parts=columns.take(self.hidden * self.each),
            y=y,
            add=add,
            is_short=up.is_short,
            up=up.panels,
            down=down.panels,
            E=self.num_experts,
            k=self.each,
            D=self.hidden,
            I=self.inner,
            up_head=up.per_matrix,
            down_head=down.per_matrix,
        )
        return [self.gate.product(x, logits), route, experts, *self.shared_experts.operations(x, y, y, columns)]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same"""
        return rows_through(self._program, x, self.hidden)


FeedForward = NativeMLP | NativeMoE


def faster_mlp(mlp: Any, library: Library) -> nn.Module:
    """The same MLP, ours if it is a gated one of SiLU."""
    parts = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    plain = all(isinstance(part, NativeLinear) for part in parts) and _is_silu(mlp.act_fn)
    found: nn.Module = NativeMLP(mlp, library) if plain else mlp
    return found


def faster_moe(moe: Any, library: Library) -> nn.Module:
    """The same experts, ours if all of their parts are of kinds that we know."""
    known = type(moe.gate).__name__ in ("DeepseekV2TopkRouter", "DeepseekV3TopkRouter")
    plain = known and isinstance(moe.shared_experts, NativeMLP) and _is_silu(moe.experts.act_fn)
    found: nn.Module = NativeMoE(moe, library) if plain and suits(moe.experts.gate_up_proj) else moe
    return found


def _is_silu(function: object) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")
