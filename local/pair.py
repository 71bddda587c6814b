"""Both pools in one process, joined by a LocalTransfer: no Ray, no network, the same engines."""

import time
from collections import defaultdict
from collections.abc import Iterator

from engine.clock import Clock, MonotonicClock
from engine.config import Config
from engine.errors import SparkpoolError
from engine.local_transfer import LocalTransfer, LocalWire
from engine.text import Text
from engine.transfer import new_agent_name
from engine.types import Chunk, Event, Request, RequestEnded
from local.build import Builder
from policy.journey import (
    Action,
    Begin,
    CallerLeft,
    CancelAttempt,
    ChooseReplicas,
    Decode,
    Deliver,
    Fail,
    JourneyEvent,
    Prefill,
    Routed,
    Wait,
    Waited,
    advance,
)
from policy.request_state import RequestState


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
        self.requests: dict[str, RequestState] = {}
        self.chunks: dict[str, list[Chunk]] = defaultdict(list)
        self.errors: dict[str, SparkpoolError] = {}

    def _join(self, name, store):  # type: ignore[no-untyped-def]
        return LocalTransfer(name, store, self.wire)

    def add(self, request: Request) -> None:
        """Check and queue a request. Raise what makes it impossible."""
        request.check(self.builder.facts)
        self.requests[request.id] = state = RequestState(request, self.clock.now(), numbered=False)
        self._feed(state, Begin())
        if state.ended:
            raise self.errors.pop(request.id)

    def cancel(self, request_id: str) -> None:
        """Cancel in both pools."""
        if state := self.requests.get(request_id):
            self._feed(state, CallerLeft())

    def step(self) -> list[Event]:
        """One step of each engine."""
        return self.step_prefill() + self.take(self.decoder.step())

    def step_prefill(self) -> list[Event]:
        """Run one step of prefill; decode queues its handoffs."""
        return self.take(self.prefiller.step())

    def begin(self, requests: list[Request]) -> None:
        """Prefill all of them and let decode admit them; it has not taken a step yet."""
        for request in requests:
            self.add(request)
        while self.decoder.stats().running < len(requests):
            self.step_prefill()
            self.take(self.decoder.admit())

    def take(self, events: list[Event]) -> list[Event]:
        """Do what follows from an engine's events."""
        for event in events:
            state = self.requests.get(event.request_id)
            if state is not None and not (isinstance(event, RequestEnded) and event.error is None):
                self._feed(state, event)
        return events

    def route(self, request: Request) -> Routed:
        return Routed()

    def perform(self, action: Action) -> None:
        """Perform an action on the engines. Raise the error with which one of them refuses it."""
        match action:
            case Prefill(request):
                self.prefiller.add(request)
            case Decode(request, handoff):
                self.decoder.add(request, handoff)
            case CancelAttempt(request_id):
                self.prefiller.cancel(request_id)
                self.decoder.cancel(request_id)

    def _feed(self, state: RequestState, event: JourneyEvent) -> None:
        """Perform what follows from an event."""
        request_id = state.request.id
        for action in advance(state, event, self.clock.now()):
            match action:
                case ChooseReplicas(request):
                    self._feed(state, self.route(request))
                case Wait():
                    self._feed(state, Waited())
                case CancelAttempt() if isinstance(event, RequestEnded):
                    pass  # each engine ends a request by itself, and leases and deadlines tell the other one
                case Deliver(chunk):
                    self.chunks[request_id].append(chunk)
                case Fail(error):
                    self.errors[request_id] = error
                case _:
                    try:
                        self.perform(action)
                    except SparkpoolError as error:
                        self.perform(CancelAttempt(request_id))
                        self._feed(state, RequestEnded(request_id=request_id, error=error))
        if state.ended:
            self.requests.pop(request_id, None)

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
