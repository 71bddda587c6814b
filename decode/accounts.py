"""Keeps the counters of a decode engine and the timings of each running request."""

from dataclasses import dataclass, replace

from decode.handoff_reads import Incoming
from decode.step_result import StepResult
from engine.stats import Acceptance, Counters
from engine.types import Chunk, DecodeTimings, Event, RequestEnded

NO_TIME = DecodeTimings(wait_seconds=0.0, transfer_seconds=0.0, decode_seconds=0.0, moved_bytes=0, moved_pages=0)


@dataclass
class RequestTimings:
    """The moments at which a running request passed its phases, on the engine's clock. `overruns` counts the steps that
    took longer than they would on the emulated device."""

    incoming: Incoming
    admitted: float
    overruns: int = 0

    def timings(self, now: float, emulated: str) -> DecodeTimings:
        incoming = self.incoming
        return DecodeTimings(
            wait_seconds=incoming.read_started - incoming.arrived,
            transfer_seconds=incoming.read_ended - incoming.read_started,
            decode_seconds=now - self.admitted,
            moved_bytes=incoming.moved_bytes,
            moved_pages=incoming.moved_pages,
            emulated=emulated,
            overruns=self.overruns,
        )


class Accounts:
    """Counts the engine's work, and completes the last chunk of each request with its timings and acceptance.

    `synthetic`: drafts are accepted at given rates; `emulated`: the device whose pace the steps keep, or "".
    """

    def __init__(self, synthetic: bool, emulated: str) -> None:
        self.counters = Counters()
        self._synthetic = synthetic
        self._emulated = emulated
        self._running: dict[str, RequestTimings] = {}

    def received(self, chunk: Chunk, with_context: bool) -> Chunk:
        """Count a request and the first token that came with it."""
        self.counters.requests += 1
        self.counters.tokens += 1
        self.counters.handoffs_without_context += not with_context
        return chunk if chunk.finish is None else replace(chunk, timings=NO_TIME, acceptance=Acceptance())

    def admitted(self, incoming: Incoming, now: float) -> None:
        self._running[incoming.sequence.id] = RequestTimings(incoming, now)

    def preempted(self, request_id: str) -> None:
        self.counters.preempted += 1
        del self._running[request_id]

    def failed(self, request_id: str) -> None:
        self.counters.failed += 1
        self._running.pop(request_id, None)

    def cancelled(self, request_id: str) -> None:
        self.counters.cancelled += 1
        self._running.pop(request_id, None)

    def observe(self, result: StepResult) -> None:
        counters, timestamps = self.counters, result.timestamps
        counters.steps += 1
        counters.draft_seconds += timestamps.draft_seconds
        counters.plan_seconds += timestamps.plan_seconds
        counters.verify_seconds += timestamps.verify_seconds
        counters.overruns += timestamps.overran
        for sequence in result.batch.sequences:
            self._running[sequence.id].overruns += timestamps.overran

    def committed(self, result: StepResult, events: list[Chunk | RequestEnded]) -> list[Event]:
        """Count the tokens that requests took from a step, and return `events` with the last chunks completed."""
        completed: list[Event] = []
        for sequence, verified, event in zip(result.batch.sequences, result.lengths, events, strict=True):
            accepted = len(event.tokens) - 1 if isinstance(event, Chunk) else 0
            self.counters.count(result.block.length, verified, accepted)
            sequence.acceptance.count(result.block.length, verified, accepted)
            if isinstance(event, RequestEnded):
                self.failed(sequence.id)
            else:
                self.counters.tokens += len(event.tokens)
                if event.finish is not None:
                    acceptance = replace(sequence.acceptance, synthetic=self._synthetic)
                    timings = self._running.pop(sequence.id).timings(result.timestamps.verified, self._emulated)
                    event = replace(event, timings=timings, acceptance=acceptance)
            completed.append(event)
        return completed

    def took(self, step_seconds: float, compute_seconds: float) -> None:
        """Count the time of a whole step, and the part of it that the models took."""
        self.counters.step_seconds += step_seconds
        self.counters.compute_seconds += compute_seconds

    def assert_idle(self) -> None:
        assert not self._running, f"requests that ended still have accounts: {list(self._running)}"
