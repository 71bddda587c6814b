"""Figures of the last few seconds."""

import math
import time
from collections import deque
from collections.abc import Callable


class SlidingWindow:
    """Values that were seen within `seconds`."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float) -> None:
        self._values.append((self._now(), value))

    def percentile(self, percent: float) -> float | None:
        """The least value that is not below `percent` of them (nearest rank); None if there are none."""
        while self._values and self._values[0][0] < self._now() - self._seconds:
            self._values.popleft()
        if not self._values:
            return None
        ordered = sorted(value for _, value in self._values)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
