"""The life of one request, from its admission to its last token: states, events and actions, without I/O.

A driver feeds events to `advance` and performs the actions that it returns. There are three: asyncio with replicas in a
cluster (cluster/serving/gateway.py), virtual time (compare/simulator/simulated_gateway.py) and a loop in one process
(local/pair.py). The transitions are decided here alone:

    state         event           next state    actions
    new           begin           routing       choose replicas
    routing       to prefill      prefilling    prefill
    routing       to decode       local         serve (prefill and decode in one decode replica)
    prefilling    handoff         decoding      decode
    local         handoff         decoding
    decoding      tokens          decoding      deliver
    decoding      last tokens     ended         deliver, finish
    waiting       waited          routing       choose replicas
    (at replicas) lost            waiting       cancel the attempt, wait
    (at replicas) failed          ended         cancel the attempt, fail
    (at replicas) caller left     ended         cancel the attempt
    (elsewhere)   failed          ended         fail
    (elsewhere)   caller left     ended

"At replicas" is prefilling, local or decoding. A pair of state and event without a row cannot happen.

Each time a request is sent to replicas is an attempt. It continues from the tokens that the caller already has, so that
no token is delivered twice and none is missing. A preempted request is sent again at once, however often that happens:
each time it has made progress. One whose replica or pages were lost is sent again after a moment, as often as the
RetryPolicy allows. Any other error, and the deadline, ends the request.
"""

import enum
from dataclasses import dataclass

from engine.errors import DeadlineExceeded, EngineFailure, Preempted, SparkpoolError, Unavailable
from engine.types import Chunk, Handoff, Request, RequestEnded
from policy.admit import RetryBudget
from policy.request_state import AT_REPLICAS, ELSEWHERE, Phase, RequestState

RETRY_SECONDS = 0.05  # doubled after each loss: a replica that has just died is routed to for a moment longer
RETRYABLE = (Unavailable, EngineFailure)


class EventKind(enum.Enum):
    BEGIN = "begin"
    TO_PREFILL = "to prefill"
    TO_DECODE = "to decode"
    HANDOFF = "handoff"
    TOKENS = "tokens"
    LAST_TOKENS = "last tokens"
    WAITED = "waited"
    LOST = "lost"
    FAILED = "failed"
    CALLER_LEFT = "caller left"


@dataclass(frozen=True)
class Begin:
    """The request has been admitted."""


@dataclass(frozen=True)
class Routed:
    """The answer to ChooseReplicas: the decode replicas that should also prefill the request, best first. Without any,
    the request is prefilled in the prefill pool."""

    local_replicas: tuple[str, ...] = ()


@dataclass(frozen=True)
class Waited:
    """The seconds of a Wait have passed."""


@dataclass(frozen=True)
class DeadlinePassed:
    """The request's `seconds_left` are over."""


@dataclass(frozen=True)
class CallerLeft:
    """The caller no longer wants the answer."""


JourneyEvent = Begin | Routed | Handoff | Chunk | RequestEnded | Waited | DeadlinePassed | CallerLeft
"""Handoff, Chunk and RequestEnded come from the current attempt's replicas: a driver drops those of earlier attempts,
and does not report how a prefill stream ends after its handoff. RequestEnded without an error: the stream stopped too
early."""


@dataclass(frozen=True)
class ChooseReplicas:
    """Decide where this attempt is prefilled, and feed Routed."""

    request: Request


@dataclass(frozen=True)
class Prefill:
    """Send the request to a prefill replica."""

    request: Request


@dataclass(frozen=True)
class Decode:
    """Send the request and its handoff to a decode replica; keep the prefill stream open meanwhile."""

    request: Request
    handoff: Handoff


@dataclass(frozen=True)
class Serve:
    """Send the request to the first of these decode replicas that can take it, which prefills and decodes it."""

    request: Request
    replicas: tuple[str, ...]


@dataclass(frozen=True)
class CancelAttempt:
    """Close the attempt's streams, and tell the replicas to drop it."""

    request_id: str


@dataclass(frozen=True)
class Wait:
    """Feed Waited after `seconds`. `error` is the reason for the next attempt."""

    seconds: float
    error: SparkpoolError


@dataclass(frozen=True)
class Deliver:
    """Give the caller these tokens."""

    chunk: Chunk


@dataclass(frozen=True)
class Finish:
    """Close the attempt's streams: the caller has everything."""


@dataclass(frozen=True)
class Fail:
    """Give the caller this error; nothing follows it."""

    error: SparkpoolError


Action = ChooseReplicas | Prefill | Decode | Serve | CancelAttempt | Wait | Deliver | Finish | Fail

TABLE: dict[tuple[Phase, EventKind], tuple[Phase, tuple[type[Action], ...]]] = {
    (Phase.NEW, EventKind.BEGIN): (Phase.ROUTING, (ChooseReplicas,)),
    (Phase.ROUTING, EventKind.TO_PREFILL): (Phase.PREFILLING, (Prefill,)),
    (Phase.ROUTING, EventKind.TO_DECODE): (Phase.LOCAL, (Serve,)),
    (Phase.PREFILLING, EventKind.HANDOFF): (Phase.DECODING, (Decode,)),
    (Phase.LOCAL, EventKind.HANDOFF): (Phase.DECODING, ()),
    (Phase.DECODING, EventKind.TOKENS): (Phase.DECODING, (Deliver,)),
    (Phase.DECODING, EventKind.LAST_TOKENS): (Phase.ENDED, (Deliver, Finish)),
    (Phase.WAITING, EventKind.WAITED): (Phase.ROUTING, (ChooseReplicas,)),
    **{(phase, EventKind.LOST): (Phase.WAITING, (CancelAttempt, Wait)) for phase in AT_REPLICAS},
    **{(phase, EventKind.FAILED): (Phase.ENDED, (CancelAttempt, Fail)) for phase in AT_REPLICAS},
    **{(phase, EventKind.CALLER_LEFT): (Phase.ENDED, (CancelAttempt,)) for phase in AT_REPLICAS},
    **{(phase, EventKind.FAILED): (Phase.ENDED, (Fail,)) for phase in ELSEWHERE},
    **{(phase, EventKind.CALLER_LEFT): (Phase.ENDED, ()) for phase in ELSEWHERE},
}


@dataclass(frozen=True)
class RetryPolicy:
    """Limits how often a request may be lost before it fails; `budget` limits the retries of all requests together."""

    max_retries: int
    budget: RetryBudget


def advance(state: RequestState, event: JourneyEvent, now: float, retries: RetryPolicy | None = None) -> list[Action]:
    """Move the request to its next state, and return what the driver has to do, in this order.

    Without `retries`, lost requests fail at once with the error of the loss.
    """
    kind, error = _classify(state, event, retries)
    assert (state.phase, kind) in TABLE, f"{state.request.id}: {kind.value} while {state.phase.value}"
    before = state.phase
    state.phase, actions = TABLE[before, kind]
    if state.phase is Phase.ROUTING:
        state.prefills += 1
    if isinstance(event, Handoff):
        if state.handoff is None:
            state.cached_tokens, state.prompt_logprobs = event.cached_tokens, event.prompt_logprobs
        state.handoff = event
        state.handed_over_at = now if before is Phase.PREFILLING else None
    if isinstance(event, Chunk):
        if state.first_chunk is None:
            state.first_chunk, state.first_token_at = event, now
        state.tokens += event.tokens
        state.last_chunk = event
    if kind is EventKind.LAST_TOKENS and retries is not None:
        retries.budget.give_back()
    if state.ended:
        state.ended_at = now
    return [_action(action, state, event, error, now) for action in actions]


def _classify(
    state: RequestState, event: JourneyEvent, retries: RetryPolicy | None
) -> tuple[EventKind, SparkpoolError | None]:
    """Return what the event means for the table, and its error, if any."""
    match event:
        case Begin():
            return EventKind.BEGIN, None
        case Routed(replicas):
            return EventKind.TO_DECODE if replicas else EventKind.TO_PREFILL, None
        case Handoff():
            return EventKind.HANDOFF, None
        case Chunk(finish=finish):
            return EventKind.TOKENS if finish is None else EventKind.LAST_TOKENS, None
        case Waited():
            return EventKind.WAITED, None
        case CallerLeft():
            return EventKind.CALLER_LEFT, None
        case DeadlinePassed():
            limit = f"not finished after {state.request.seconds_left} s (deadline_seconds, gateway.request_seconds)"
            return EventKind.FAILED, DeadlineExceeded(limit)
        case RequestEnded(error=error):
            return _classify_end(state, error or _early_end(state), retries)


def _early_end(state: RequestState) -> SparkpoolError:
    if state.phase is Phase.DECODING:
        return Unavailable("the decode stream ended before the request did")
    return Unavailable("the prefill stream ended without a handoff")


def _classify_end(
    state: RequestState, error: SparkpoolError, retries: RetryPolicy | None
) -> tuple[EventKind, SparkpoolError]:
    """Count a loss, and decide whether there is another attempt."""
    if isinstance(error, Preempted):
        state.preemptions += 1
        return EventKind.LOST, error
    if retries is None or not isinstance(error, RETRYABLE):
        return EventKind.FAILED, error
    state.losses += 1
    if state.losses > retries.max_retries:
        spent = f"was lost {state.losses} times (gateway.retries)"
    elif not retries.budget.take():
        spent = "was lost, and too many requests were lost of late for another attempt (gateway.max_ongoing)"
    else:
        return EventKind.LOST, error
    failure = Unavailable(f"{state.request.id} {spent}; last: {error}")
    failure.__cause__ = error
    return EventKind.FAILED, failure


def _action(
    kind: type[Action], state: RequestState, event: JourneyEvent, error: SparkpoolError | None, now: float
) -> Action:
    if kind is CancelAttempt:
        return CancelAttempt(state.attempt_id)
    if kind is Finish:
        return Finish()
    if kind is Deliver:
        assert isinstance(event, Chunk)
        return Deliver(event)
    if kind is Decode:
        assert isinstance(event, Handoff)
        return Decode(state.attempt(now), event)
    if kind is Serve:
        assert isinstance(event, Routed)
        return Serve(state.attempt(now), event.local_replicas)
    if kind is Wait:
        assert error is not None
        return Wait(0.0 if isinstance(error, Preempted) else RETRY_SECONDS * 2 ** (state.losses - 1), error)
    if kind is Fail:
        assert error is not None
        return Fail(error)
    return (ChooseReplicas if kind is ChooseReplicas else Prefill)(state.attempt(now))
