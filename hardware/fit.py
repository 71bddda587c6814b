"""Losses fitted on measurements, never guessed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.steptime import StepTimes
from hardware.roofline import Losses

FREE = ("compute", "memory", "layer_seconds", "step_seconds")
SHARES = ("compute", "memory", "network")
LOSSES = (*SHARES, "layer_seconds", "step_seconds")
ENOUGH = 1 - 1e-6  # of an error is no longer better: a loss that nothing depends on would be made smaller without end


@dataclass(frozen=True)
class MeasuredStep:
    """A measured step: its requests and tokens, and its seconds, with drafting or without."""

    requests: int
    tokens: int
    context: int
    seconds: float
    drafted: bool = False

    def modelled(self, times: StepTimes) -> float:
        drafting = times.draft_seconds(self.requests, self.context) if self.drafted else 0.0
        return drafting + times.verify_seconds(self.requests, self.tokens, self.context)


@dataclass(frozen=True)
class Fitted:
    """The losses, and by how much the model with them is off at each measured point (0.01: one per cent too much)."""

    losses: Losses
    errors: tuple[float, ...]

    @property
    def worst(self) -> float:
        return max(abs(error) for error in self.errors)


def fitted(make: Callable[[Losses], StepTimes], measured: Sequence[MeasuredStep], source: str, layers: int) -> Fitted:
    """The losses under which `make` comes closest to `measured`, by least squares of relative errors.

    Few points cannot tell all losses apart: `layer_seconds` and `step_seconds` come out as one where only their sum is
    seen. What is predicted from the fit is meant, not the parts of it. `layers` scales the search.
    """
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} measured steps are too few to fit losses")

    def errors(losses: Losses) -> tuple[float, ...]:
        times = make(losses)
        return tuple(step.modelled(times) / step.seconds - 1 for step in measured)

    return closest(errors, Losses(source=source), min(step.seconds for step in measured), layers)


def closest(
    errors: Callable[[Losses], tuple[float, ...]],
    base: Losses,
    shortest: float,
    layers: int,
    free: Sequence[str] = FREE,
) -> Fitted:
    """The losses under which the squares of `errors` have the smallest sum. Only those named in `free` are searched;
    the others are as in `base`. `shortest`: seconds of the shortest step behind these errors; with `layers` it scales
    the search."""

    def cost(values: Sequence[float]) -> float:
        return sum(error**2 for error in errors(_losses(base, free, values)))

    best: tuple[float, Sequence[float]] | None = None
    for share in (0.1, 0.5, 0.9):  # of the shortest step, what depends on nothing
        begin = {"layer_seconds": share * shortest / layers, "step_seconds": 0.01 * shortest}
        found = _searched(cost, [begin.get(name, 0.5) for name in free], [name in SHARES for name in free])
        best = found if best is None or found[0] < best[0] else best
    assert best is not None
    losses = _losses(base, free, best[1])
    return Fitted(losses, errors(losses))


def _losses(base: Losses, free: Sequence[str], values: Sequence[float]) -> Losses:
    changed = dict(zip(free, values, strict=True))
    compute, memory, network, layer, step = (changed.get(name, getattr(base, name)) for name in LOSSES)
    return Losses(compute, memory, network, layer, step, base.source)


def _searched(
    cost: Callable[[Sequence[float]], float], start: list[float], shares: Sequence[bool]
) -> tuple[float, list[float]]:
    """Pattern search (Hooke and Jeeves 1961) over logarithms: steps by factors that shrink where none is better."""
    point, value, factor = list(start), cost(start), 2.0
    while factor > 1.0005:
        better = False
        for axis in range(len(point)):
            for step in (factor, 1 / factor):
                tried = list(point)
                tried[axis] = tried[axis] * step
                if shares[axis] and tried[axis] > 1:
                    tried[axis] = 1.0
                if (reached := cost(tried)) < value * ENOUGH:
                    point, value, better = tried, reached, True
                    break
        if not better:
            factor = math.sqrt(factor)
    return value, point
