"""Time as a seam. Engines ask `now()`; only the thread shell and the pace ever sleep."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a clock that never goes backwards. Only differences mean anything."""
        ...


class MonotonicClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds


class Stopwatch:
    """The seconds spent inside `with`, in all, on a clock."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.seconds = 0.0
        self._clock = clock or MonotonicClock()

    def __enter__(self) -> None:
        self.seconds -= self._clock.now()

    def __exit__(self, *_: object) -> None:
        self.seconds += self._clock.now()
