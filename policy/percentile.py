"""Percentiles: of a list, and of the values that were seen within the last seconds."""

import time
from collections import deque
from collections.abc import Callable, Iterable


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie, interpolated linearly between two neighbours.

    This is numpy's default, to the last bit. There must be at least one value.
    """
    ordered = sorted(values)
    rank = (len(ordered) - 1) * (percent / 100)
    index = min(int(rank), len(ordered) - 1)
    low, high, share = ordered[index], ordered[min(index + 1, len(ordered) - 1)], rank - index
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


class SlidingWindow:
    """Keeps the values that were added within the last `seconds`."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float) -> None:
        self._values.append((self._now(), value))

    def percentile(self, percent: float) -> float | None:
        """Return None if no value is recent enough."""
        while self._values and self._values[0][0] < self._now() - self._seconds:
            self._values.popleft()
        return percentile((value for _, value in self._values), percent) if self._values else None
