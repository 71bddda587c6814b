"""Both pools in one process, joined by a LocalTransfer: no Ray, no network, the same engines."""

import time
from collections import defaultdict
from collections.abc import Iterator

from engine.clock import Clock, MonotonicClock
from engine.config import Config
from engine.errors import Preempted, SparkpoolError
from engine.local_transfer import LocalTransfer, LocalWire
from engine.text import Text
from engine.transfer import new_agent_name
from engine.types import Chunk, Event, Handoff, Request, RequestEnded
from local.build import Builder


class Pair:
    """A Prefiller and a Decoder, and the part of the gateway that carries handoffs between them."""

    def __init__(self, config: Config, clock: Clock | None = None, builder: Builder | None = None) -> None:
        self.clock = clock or MonotonicClock()
        self.builder = builder or Builder(config, config.prefill)
        self.wire = LocalWire()
        self.text = Text.load(config.model.path)
        join = self._join
        self.prefiller = self.builder.prefiller(new_agent_name("prefill"), join, self.clock)
        self.decoder = self.builder.decoder(new_agent_name("decode"), join, self.text, self.clock)
        self.requests: dict[str, Request] = {}
        self.chunks: dict[str, list[Chunk]] = defaultdict(list)
        self.errors: dict[str, SparkpoolError] = {}

    def _join(self, name, store):  # type: ignore[no-untyped-def]
        return LocalTransfer(name, store, self.wire)

    def add(self, request: Request) -> None:
        """Check and queue a request."""
        request.check(self.builder.facts)
        self.requests[request.id] = request
        self.prefiller.add(request)

    def cancel(self, request_id: str) -> None:
        """Cancel in both pools."""
        self.requests.pop(request_id, None)
        self.prefiller.cancel(request_id)
        self.decoder.cancel(request_id)

    def step(self) -> list[Event]:
        """One step of each engine."""
        return self.step_prefill() + self.take(self.decoder.step())

    def step_prefill(self) -> list[Event]:
        """One step of prefill; what it hands over waits in decode."""
        events = self.prefiller.step()
        for event in events:
            if isinstance(event, Handoff) and event.request_id in self.requests:
                self._carry(event)
        return self.take(events)

    def begin(self, requests: list[Request]) -> None:
        """Prefill all of them and let decode admit them; it has not taken a step yet."""
        for request in requests:
            self.add(request)
        while self.decoder.stats().running < len(requests):
            self.step_prefill()
            self.take(self.decoder.admit())

    def take(self, events: list[Event]) -> list[Event]:
        """Note what an engine says of requests, and send those that gave up their pages through prefill again."""
        for event in events:
            if isinstance(event, Chunk):
                self.chunks[event.request_id].append(event)
                if event.finish is not None:
                    self.requests.pop(event.request_id, None)
            elif isinstance(event, RequestEnded) and isinstance(event.error, Preempted):
                self._again(event.request_id)
            elif isinstance(event, RequestEnded) and event.error is not None:
                self.errors[event.request_id] = event.error
                self.requests.pop(event.request_id, None)
        return events

    def _again(self, request_id: str) -> None:
        """Prefill a request that had to give up its pages, with the tokens that it has."""
        request = self.requests[request_id]
        said = tuple(token for chunk in self.chunks[request_id] for token in chunk.tokens)
        self.requests[request_id] = request.resumed(said[len(request.generated) :])
        try:
            self.prefiller.add(self.requests[request_id])
        except SparkpoolError as error:
            self.errors[request_id] = error
            del self.requests[request_id]

    def _carry(self, handoff: Handoff) -> None:
        """Pass a handoff on; if it is not wanted, the request ends and its pages go back."""
        try:
            self.decoder.add(self.requests[handoff.request_id], handoff)
        except SparkpoolError as error:
            self.cancel(handoff.request_id)
            self.errors[handoff.request_id] = error

    @property
    def idle(self) -> bool:
        return self.prefiller.next_deadline() is None and self.decoder.next_deadline() is None

    def run(self) -> None:
        """Step until nothing is under way, then check that nothing was leaked."""
        while not self.idle:
            self.step()
        self.assert_consistent()

    def assert_consistent(self) -> None:
        self.prefiller.assert_consistent()
        self.decoder.assert_consistent()

    def stream(self, request: Request) -> Iterator[Chunk]:
        """One request from beginning to end. Raises what ended it, if it failed."""
        self.add(request)
        while request.id in self.requests:
            for event in self.step():
                if isinstance(event, Chunk) and event.request_id == request.id:
                    yield event
            deadlines = [self.prefiller.next_deadline(), self.decoder.next_deadline()]
            time.sleep(max(0.0, min((d for d in deadlines if d is not None), default=0.0) - self.clock.now()))
        if request.id in self.errors:
            raise self.errors[request.id]

    def generate(self, requests: list[Request]) -> dict[str, list[int]]:
        """Several requests at once; their generated tokens by request id."""
        for request in requests:
            self.add(request)
        self.run()
        if self.errors:
            raise next(iter(self.errors.values()))
        return {r.id: [t for chunk in self.chunks[r.id] for t in chunk.tokens] for r in requests}
