"""A prefill engine, and a decode engine that prefills as well: requests go either way."""

from typing import Any

from engine.config import Config
from engine.transfer import new_agent_name
from engine.types import Event, Handoff, Request
from local import ColocatedEngine, Pair
from policy.journey import Action, Routed, Serve
from tests.local.rig import Rig


class MixedPair(Pair):
    """`Pair`, whose decode engine can take a request without a handoff. Who came so comes so again."""

    decoder: Any

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        engine = self.builder.decode_engine(new_agent_name("decode"), self._join, self.text, clock=self.clock)
        assert isinstance(engine, ColocatedEngine)
        self.decoder = self.colocated = engine
        self.served: set[str] = set()
        self.handoffs: dict[str, Handoff] = {}

    def serve(self, request: Request) -> None:
        """Check a request, and let decode prefill it."""
        self.served.add(request.id)
        self.add(request)

    def generate(self, requests: list[Request], served: bool = True) -> dict[str, list[int]]:
        """Several at once, all without a handoff; or every second one, beginning with the first."""
        for i, request in enumerate(requests):
            if served or i % 2 == 0:
                self.serve(request)
            else:
                self.add(request)
        self.run()
        if self.errors:
            raise next(iter(self.errors.values()))
        return {r.id: [t for chunk in self.chunks[r.id] for t in chunk.tokens] for r in requests}

    def take(self, events: list[Event]) -> list[Event]:
        self.handoffs |= {event.request_id: event for event in events if isinstance(event, Handoff)}
        return super().take(events)

    def route(self, request: Request) -> Routed:
        return Routed(("decode",) if request.id in self.served else ())

    def perform(self, action: Action) -> None:
        if isinstance(action, Serve):
            self.colocated.serve(action.request)
        else:
            super().perform(action)


class MixedRig(Rig, MixedPair):
    """The same, with time and the wire in the test's hand."""

    def phases(self) -> dict[str, str]:
        return {i.sequence.id: str(i.phase) for i in self.colocated.decoder._inbox._incoming.values()}

    def decoding(self, name: str) -> bool:
        return name in self.colocated.decoder._schedule.running

    def prefilling(self, name: str) -> bool:
        """Whether decode has begun with its prompt."""
        return any(p.request.id == name for p in self.colocated.prefiller._schedule.running)

    def waiting(self, name: str) -> bool:
        """Whether its prompt waits in decode."""
        return any(p.request.id == name for p in self.colocated.prefiller._schedule.waiting)

    @property
    def total(self) -> int:
        """Pages of the whole context in decode."""
        return self.colocated.stats().pages["full"].total
