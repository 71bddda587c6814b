"""The optimizers of both trainings: Muon for matrices, AdamW for all other parameters, one learning-rate schedule.

Muon is Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): momentum whose matrices
are orthogonalised before each step. torch.optim.Muon takes only matrices; here the last two dimensions are a matrix, so
stacked experts `[experts, out, in]` work too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly the nearest (semi-)orthogonal matrix to each of `[..., rows, columns]`, computed in `dtype`."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices.dtype)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    A parameter in `halves` (ids) holds two matrices stacked by rows, gate and up projection, that are updated
    separately. Orthogonalisation multiplies in `dtype`; bfloat16 is exact enough for it (Jordan).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        halves: frozenset[int] = frozenset(),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.halves, self.dtype = halves, dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, float]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        direction = parameter.grad.lerp(momentum, group["momentum"])
        if id(parameter) in self.halves:
            direction = direction.reshape(*direction.shape[:-2], 2, -1, direction.shape[-1])
        rows, columns = direction.shape[-2:]
        step = orthogonalised(direction, self.dtype).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that AdamW updates with one peak learning rate and one weight decay."""

    parameters: list[nn.Parameter]
    rate: float
    weight_decay: float = 0.0


class ScheduledOptimizers:
    """Muon (None: no parameter uses it) and AdamW, whose learning rates rise and fall together."""

    def __init__(self, muon: Muon | None, groups: Iterable[ParameterGroup]) -> None:
        adam = torch.optim.AdamW(
            [{"params": g.parameters, "lr": g.rate, "weight_decay": g.weight_decay} for g in groups if g.parameters],
            betas=(0.9, 0.95),
            fused=True,
        )
        self._optimizers: list[torch.optim.Optimizer] = [adam] if muon is None else [muon, adam]
        for group in self._groups:
            group["peak"] = group["lr"]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def set_rates(self, factor: float) -> None:
        """Set every learning rate to `factor` times its peak."""
        for group in self._groups:
            group["lr"] = group["peak"] * factor

    def step(self) -> None:
        """Update all parameters, then clear their gradients."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[StateDict]:
        """Return the state that a checkpoint keeps."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def restore(self, state: list[StateDict]) -> None:
        """Continue from the `state()` of an earlier run."""
        for optimizer, saved in zip(self._optimizers, state, strict=True):
            optimizer.load_state_dict(saved)
