"""The interface that all engines share, by which they are driven in a thread or in virtual time."""

from typing import Protocol

from engine.stats import ReplicaStats
from engine.types import Event


class Engine(Protocol):
    """A Prefiller, a Decoder or a ColocatedEngine. Not thread-safe: one thread calls everything."""

    def warm_up(self) -> None:
        """Run every kind of step once, before the first request."""
        ...

    def step(self) -> list[Event]:
        """Run one step and return the events of all requests in it."""
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a request in any state and free its pages. Unknown ids are ignored."""
        ...

    def next_deadline(self) -> float | None:
        """Return when `step` should be called next, on the engine's clock; None if no request is here."""
        ...

    def stats(self) -> ReplicaStats: ...

    def assert_consistent(self) -> None:
        """Raise AssertionError unless every page is accounted for."""
        ...
