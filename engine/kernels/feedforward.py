"""The feed-forward part of a decoder layer: an MLP, or experts with their router and a shared MLP.

T = tokens, k = experts of a token, E = experts, D = hidden size, I = inner size
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.linear import NativeLinear, Packed
from engine.kernels.native import Library, lossless, suits
from engine.kernels.program import NOWHERE, Columns, ExpertsOp, Gate, Op, Program, Route, X, Y, run_by_row


class NativeMLP(nn.Module):
    """Computes down(SiLU(gate(x)) * up(x))."""

    def __init__(self, gate: NativeLinear, up: NativeLinear, down: NativeLinear, library: Library) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        columns = Columns()
        self._program = Program(library, self.operations(X, Y, NOWHERE, columns), columns.width)

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """Return the operations of y = mlp(x) + add."""
        inner = self.gate_proj.out_features
        gate, up = columns.take(inner), columns.take(inner)
        return [
            self.gate_proj.product(x, gate),
            self.up_proj.product(x, up, wait=False),
            Gate(x=gate, up=up, I=inner),
            self.down_proj.product(gate, y, add),
        ]

    def forward(self, x: Tensor) -> Tensor:
        return run_by_row(self._program, x, self.down_proj.out_features)


class Experts(nn.Module):
    """Packed matrices of all experts: `up` [E, 2 I, D] with the gate first, `down` [E, D, I]."""

    def __init__(self, up: Packed, down: Packed) -> None:
        super().__init__()
        self.up, self.down = up, down


class NativeMoE(nn.Module):
    """Sorts tokens by expert, so that each expert's matrices are read once; then adds the shared experts."""

    def __init__(self, moe: Any, library: Library) -> None:
        super().__init__()
        experts, router = moe.experts, moe.gate
        self.gate = Packed(router.weight.detach().float(), library)
        self.shared_experts: NativeMLP = moe.shared_experts
        self.sigmoid = type(router).__name__ == "DeepseekV3TopkRouter"
        self.bias: Tensor | None = router.e_score_correction_bias.detach().float() if self.sigmoid else None
        self.to_one = self.sigmoid and router.norm_topk_prob
        limited = self.sigmoid or router.topk_method == "group_limited_greedy"
        groups: tuple[int, int] = (router.num_group, router.topk_group) if limited else (1, 1)
        self.groups, self.best_groups = groups
        self.each, self.scale = router.top_k, router.routed_scaling_factor
        self.num_experts, double, self.hidden = experts.gate_up_proj.shape
        self.inner = double // 2
        matrices = experts.gate_up_proj.detach(), experts.down_proj.detach()
        dtype = torch.bfloat16 if all(map(lossless, matrices)) else torch.float32
        self.experts = Experts(*(Packed(matrix, library, dtype) for matrix in matrices))
        moe.experts = nn.Identity()  # frees the weights even if something still refers to the old module
        columns = Columns()
        self._program = Program(library, self.operations(X, Y, NOWHERE, columns), columns.width)

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """Return the operations of y = experts(x) + shared(x) + add."""
        logits, chosen, share = columns.take(self.num_experts), columns.take(2 * self.each), columns.take(self.each)
        up, down = self.experts.up, self.experts.down
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
        experts = ExpertsOp(
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
        return run_by_row(self._program, x, self.hidden)


FeedForward = NativeMLP | NativeMoE


def faster_mlp(mlp: nn.Module, library: Library) -> nn.Module:
    """Return a native replacement if `mlp` is a gated one with SiLU and native projections, else `mlp` itself."""
    gate, up, down = (getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if isinstance(gate, NativeLinear) and isinstance(up, NativeLinear) and isinstance(down, NativeLinear):
        return NativeMLP(gate, up, down, library) if _is_silu(mlp.act_fn) else mlp
    return mlp


def faster_moe(moe: Any, library: Library) -> nn.Module:
    """Return a native replacement if the router, the experts and the shared MLP are of known kinds, else `moe`."""
    known = type(moe.gate).__name__ in ("DeepseekV2TopkRouter", "DeepseekV3TopkRouter")
    native = known and isinstance(moe.shared_experts, NativeMLP) and _is_silu(moe.experts.act_fn)
    found: nn.Module = NativeMoE(moe, library) if native and suits(moe.experts.gate_up_proj) else moe
    return found


def _is_silu(function: object) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")
