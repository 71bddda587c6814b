"""Clocks. Engines only call `now()`; only the engine thread and the pace sleep."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Return seconds since an arbitrary moment. They never decrease."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that a test advances."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds


class Stopwatch:
    """Sums the seconds spent inside its `with` blocks."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.seconds = 0.0
        self._clock = clock or MonotonicClock()

    def __enter__(self) -> None:
        self.seconds -= self._clock.now()

    def __exit__(self, *_: object) -> None:
        self.seconds += self._clock.now()
