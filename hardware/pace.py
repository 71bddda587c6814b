"""The pace of an emulated device: steps whose tokens are real take the time that they would take there.

With a virtual clock whose `advance` is the `sleep`, the same pace is a simulator's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.clock import Clock
from engine.steptime import StepTimes


@dataclass(frozen=True)
class Scaled:
    """Step times of another machine, each so many times as long."""

    times: StepTimes
    scale: float

    def draft_seconds(self, requests: int, context: int) -> float:
        return self.scale * self.times.draft_seconds(requests, context)

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self.scale * self.times.verify_seconds(requests, tokens, context)


class ModelledPace:
    """Waits until a part of a step has taken as long as `times` says (decode/pace.py: Pace).

    A part that took longer by itself is an overrun: the device would have been faster than this machine can show.
    """

    def __init__(
        self, times: StepTimes, clock: Clock, sleep: Callable[[float], None] = time.sleep, emulated: str = ""
    ) -> None:
        """`emulated` is the name of the device."""
        self.emulated = emulated
        self._times = times
        self._clock = clock
        self._sleep = sleep
        self._overran = False

    def drafted(self, began: float, requests: int, context: int) -> None:
        """Wait for the end of drafting, which began at `began`."""
        self._wait(began + self._times.draft_seconds(requests, context))

    def verified(self, began: float, requests: int, tokens: int, context: int) -> bool:
        """Wait for the end of a step's verification, which began at `began`. Return True if any part of the step
        overran."""
        self._wait(began + self._times.verify_seconds(requests, tokens, context))
        overran, self._overran = self._overran, False
        return overran

    def _wait(self, until: float) -> None:
        left = until - self._clock.now()
        if left < 0:
            self._overran = True
        else:
            self._sleep(left)
