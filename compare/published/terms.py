"""Steps taken apart into what each loss acts on, so that a search can weigh thousands of losses in a second."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from hardware.roofline import Losses, Roofline, Work

BEST = Losses()


@dataclass(frozen=True)
class Terms:
    """A time as a sum: `works` are (times that it occurs, seconds of arithmetic, of memory), of which the longer
    counts; `network` seconds of messages; `fixed` seconds that no loss acts on. Without losses, all of it."""

    works: tuple[tuple[float, float, float], ...] = ()
    network: float = 0.0
    fixed: float = 0.0

    def __add__(self, other: "Terms | float") -> "Terms":
        if not isinstance(other, Terms):
            return replace(self, fixed=self.fixed + other)
        return Terms(self.works + other.works, self.network + other.network, self.fixed + other.fixed)

    __radd__ = __add__

    def __mul__(self, times: float) -> "Terms":
        works = tuple((times * count, compute, memory) for count, compute, memory in self.works)
        return Terms(works, times * self.network, times * self.fixed)

    __rmul__ = __mul__


class _Apart(Roofline):
    """A roofline whose times are `Terms`: the sums are the ones above, only what is added up is another thing."""

    def message_seconds(self, size: float) -> float:
        fixed = super().message_seconds(0.0)
        return cast(float, Terms(network=super().message_seconds(size) - fixed, fixed=fixed))

    def _seconds(self, operations: float, size: float, precision: str | None = None) -> float:
        compute, memory = super()._seconds(operations, 0.0, precision), super()._seconds(0.0, size, precision)
        return cast(float, Terms(((1.0, compute, memory),)))


@dataclass(frozen=True)
class Steps:
    """Several steps of one model, as arrays. [step, term]"""

    counts: "np.ndarray"
    compute: "np.ndarray"
    memory: "np.ndarray"
    network: "np.ndarray"
    fixed: "np.ndarray"
    layers: float
    """Times that the time of a layer occurs in each, drafter not counted."""

    @classmethod
    def of(cls, roofline: Roofline, works: Sequence[Work]) -> "Steps":
        """The target's steps with such work; the roofline's own losses play no part."""
        apart = _Apart(roofline.model, roofline.numbers, roofline.placement, BEST)
        found = [cast(Terms, apart.verify_seconds(int(w.requests), round(w.tokens), w.context)) for w in works]
        works_of = np.array([terms.works for terms in found])
        return cls(
            works_of[:, :, 0],
            works_of[:, :, 1],
            works_of[:, :, 2],
            np.array([terms.network for terms in found]),
            np.array([terms.fixed for terms in found]),
            len(roofline.model.layers),
        )

    def seconds(self, losses: Losses) -> "np.ndarray":
        """[step]"""
        work = np.maximum(self.compute / losses.compute, self.memory / losses.memory)
        own = self.layers * losses.layer_seconds + losses.step_seconds
        return np.asarray((self.counts * work).sum(1) + self.network / losses.network + self.fixed + own)
