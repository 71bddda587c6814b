"""Losses from measured steps: what a device really gives is fitted, never guessed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.steptime import StepTimes
from hardware.roofline import Losses


@dataclass(frozen=True)
class Measured:
    """A step that somebody measured: of so many requests and tokens, drafting included or not, in seconds."""

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
    """The losses, and by how much the model with them is off at each measured step (0.01: one per cent too long)."""

    losses: Losses
    errors: tuple[float, ...]

    @property
    def worst(self) -> float:
        return max(abs(error) for error in self.errors)


def fitted(make: Callable[[Losses], StepTimes], measured: Sequence[Measured], source: str, layers: int) -> Fitted:
    """The losses under which `make` comes closest to `measured`, by least squares of relative errors.

    Few points cannot tell all losses apart: `layer_seconds` and `step_seconds` come out as one where only their sum is
    seen. What is predicted from the fit is meant, not the parts of it. `layers` scales the search.
    """
    if len(measured) < 2:
        raise ValueError(f"{len(measured)} measured steps are too few to fit losses")

    def errors(losses: Losses) -> tuple[float, ...]:
        times = make(losses)
        return tuple(step.modelled(times) / step.seconds - 1 for step in measured)

    def cost(values: Sequence[float]) -> float:
        return sum(error**2 for error in errors(_losses(values, source)))

    shortest = min(step.seconds for step in measured)
    best: tuple[float, Sequence[float]] | None = None
    for share in (0.1, 0.5, 0.9):  # of the shortest step, what depends on nothing
        start = [0.5, 0.5, share * shortest / layers, 0.01 * shortest]
        found = _searched(cost, start)
        best = found if best is None or found[0] < best[0] else best
    assert best is not None
    losses = _losses(best[1], source)
    return Fitted(losses, errors(losses))


def _losses(values: Sequence[float], source: str) -> Losses:
    compute, memory, layer_seconds, step_seconds = values
    return Losses(compute=compute, memory=memory, layer_seconds=layer_seconds, step_seconds=step_seconds, source=source)


def _searched(cost: Callable[[Sequence[float]], float], start: list[float]) -> tuple[float, list[float]]:
    """Pattern search (Hooke and Jeeves 1961) over logarithms: steps by factors that shrink where none is better."""
    point, value, factor = list(start), cost(start), 2.0
    while factor > 1.0005:
        better = False
        for axis in range(len(point)):
            for step in (factor, 1 / factor):
                tried = list(point)
                tried[axis] = tried[axis] * step
                if axis < 2 and tried[axis] > 1:  # a share
                    tried[axis] = 1.0
                if (reached := cost(tried)) < value:
                    point, value, better = tried, reached, True
                    break
        if not better:
            factor = math.sqrt(factor)
    return value, point
