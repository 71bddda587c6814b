"""Tests the transitions of a request, and what holds for every order of events."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cluster.serving.gateway
import compare.simulator.simulated_gateway
import local.pair
import policy.journey
import policy.request_state
from engine.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    HandoffLost,
    Preempted,
    SparkpoolError,
    Unavailable,
)
from engine.types import Chunk, FinishReason, Handoff, Request, RequestEnded, Sampling, StopRules
from policy.admit import RetryBudget
from policy.journey import (
    RETRY_SECONDS,
    TABLE,
    Action,
    Begin,
    CallerLeft,
    CancelAttempt,
    ChooseReplicas,
    DeadlinePassed,
    Decode,
    Deliver,
    EventKind,
    Fail,
    Finish,
    JourneyEvent,
    Prefill,
    RetryPolicy,
    Routed,
    Serve,
    Wait,
    Waited,
    advance,
)
from policy.request_state import AT_REPLICAS, ELSEWHERE, Phase, RequestState
from tests.cluster.doubles import NO_TIME, chunk, handoff

REQUEST = Request(id="r", prompt=(5, 6), sampling=Sampling(), stop=StopRules(max_tokens=9), seconds_left=60.0)
PLENTY = RetryPolicy(3, RetryBudget(100))
LOST, PREEMPTED = HandoffLost("gone"), Preempted("pages")


def ended(error: SparkpoolError | None = None) -> RequestEnded:
    return RequestEnded(request_id="any", error=error)


def given_events(*events: JourneyEvent, retries: RetryPolicy | None = PLENTY) -> tuple[RequestState, list[Action]]:
    """Return the state after these events, one per second, and the actions of the last one."""
    state, actions = RequestState(REQUEST, arrived_at=0.0), []
    for now, event in enumerate(events):
        actions = advance(state, event, float(now), retries)
    return state, actions


PREFILLING = (Begin(), Routed())
DECODING = (*PREFILLING, handoff(REQUEST))
LOCAL = (Begin(), Routed(("d1", "d2")))


def test_gateway_simulator_and_pair_share_one_journey() -> None:
    drivers = (cluster.serving.gateway, compare.simulator.simulated_gateway, local.pair)
    assert all(driver.advance is policy.journey.advance for driver in drivers)
    assert all(driver.RequestState is policy.request_state.RequestState for driver in drivers)
    for name in ("RetryPolicy", "RetryBudget", "RecentAnswers", "RequestState"):
        assert getattr(cluster.serving.gateway, name) is getattr(compare.simulator.simulated_gateway, name)
    for driver in drivers:
        assert not [name for name in vars(driver) if name in ("RETRY_SECONDS", "RECENT_SECONDS", "RETRYABLE")]


def test_the_documentation_shows_the_table() -> None:
    groups = {"(at replicas)": AT_REPLICAS, "(elsewhere)": ELSEWHERE}
    shown = set()
    rows = (policy.journey.__doc__ or "").split("actions\n")[1].split("\n\n")[0].splitlines()
    for row in rows:
        phases, event, after = row[4:18].strip(), row[18:34].strip(), row[34:48].strip()
        for phase in groups.get(phases) or (Phase(phases),):
            shown.add((phase, EventKind(event)))
            assert TABLE[phase, EventKind(event)][0] == Phase(after), row
    assert shown == set(TABLE)


def test_a_request_goes_through_both_pools() -> None:
    assert given_events(Begin())[1] == [ChooseReplicas(replace(REQUEST, id="r.1"))]
    assert given_events(*PREFILLING)[1] == [Prefill(replace(REQUEST.aged(1.0), id="r.1"))]
    assert given_events(*DECODING)[1] == [Decode(replace(REQUEST.aged(2.0), id="r.1"), handoff(REQUEST))]
    assert given_events(*DECODING, chunk(1))[1] == [Deliver(chunk(1))]
    last = chunk(2, finish=FinishReason.STOP)
    state, actions = given_events(*DECODING, chunk(1), last)
    assert actions == [Deliver(last), Finish()]
    assert (state.tokens, state.first_token_at, state.ended_at) == ([1, 2], 3.0, 4.0)
    assert (state.first_token_seconds, state.tokens_per_second, state.handoff_seconds) == (3.0, 1.0, 1.0)


def test_a_request_may_stay_in_one_replica() -> None:
    assert given_events(*LOCAL)[1] == [Serve(replace(REQUEST.aged(1.0), id="r.1"), ("d1", "d2"))]
    assert given_events(*LOCAL, handoff(REQUEST))[1] == []
    state, _ = given_events(*LOCAL, handoff(REQUEST), chunk(1, finish=FinishReason.STOP))
    assert state.ended and state.handoff_seconds is None


@pytest.mark.parametrize("error", [LOST, Unavailable("gone"), EngineFailure("bug"), None])
@pytest.mark.parametrize("before", [PREFILLING, LOCAL, (*DECODING, chunk(1))])
def test_a_loss_is_followed_by_another_attempt(before: tuple[JourneyEvent, ...], error: SparkpoolError | None) -> None:
    """A stream that ends too early without an error is a loss too."""
    state, actions = given_events(*before, ended(error))
    cancel, wait = actions
    assert cancel == CancelAttempt("r.1")
    assert isinstance(wait, Wait) and wait.seconds == RETRY_SECONDS and (error is None or wait.error is error)

    (choose,) = advance(state, Waited(), 9.0, PLENTY)
    assert choose == ChooseReplicas(replace(REQUEST.aged(9.0).resumed(tuple(state.tokens)), id="r.2"))


def test_each_loss_waits_longer_and_the_last_one_is_reported() -> None:
    again = (Waited(), Routed(), ended(LOST))
    state, (_, second) = given_events(*PREFILLING, ended(LOST), *again)
    assert isinstance(second, Wait) and second.seconds == 2 * RETRY_SECONDS
    _, (_, third) = given_events(*PREFILLING, ended(LOST), *again, *again)
    assert isinstance(third, Wait) and third.seconds == 4 * RETRY_SECONDS

    state, (cancel, fail) = given_events(*PREFILLING, ended(LOST), *again, *again, *again)
    assert cancel == CancelAttempt("r.4") and state.ended
    assert isinstance(fail, Fail) and type(fail.error) is Unavailable and fail.error.__cause__ is LOST
    assert str(fail.error) == "r was lost 4 times (gateway.retries); last: gone"


def test_the_budget_is_shared_and_refilled_by_successful_answers() -> None:
    retries = RetryPolicy(99, RetryBudget(1))
    _, (_, wait) = given_events(*PREFILLING, ended(LOST), retries=retries)
    assert isinstance(wait, Wait)
    _, (_, fail) = given_events(*PREFILLING, ended(LOST), retries=retries)
    assert isinstance(fail, Fail) and "too many requests were lost" in str(fail.error)
    for _ in range(2):
        given_events(*DECODING, chunk(1, finish=FinishReason.STOP), retries=retries)
    _, (_, wait) = given_events(*PREFILLING, ended(LOST), retries=retries)
    assert isinstance(wait, Wait)


@pytest.mark.parametrize("retries", [None, RetryPolicy(0, RetryBudget(0))])
def test_a_preempted_request_is_sent_again_at_once_and_costs_no_retry(retries: RetryPolicy | None) -> None:
    again = (Waited(), *DECODING[1:], chunk(1), ended(PREEMPTED))
    state, actions = given_events(*DECODING, chunk(1), ended(PREEMPTED), *again, *again, retries=retries)

    assert actions == [CancelAttempt("r.3"), Wait(0.0, PREEMPTED)]
    assert (state.preemptions, state.losses, state.tokens) == (3, 0, [1, 1, 1])


@pytest.mark.parametrize("error", [BadRequest("x", "y"), Cancelled("by Serve")])
def test_other_errors_end_the_request(error: SparkpoolError) -> None:
    assert given_events(*DECODING, ended(error))[1] == [CancelAttempt("r.1"), Fail(error)]


def test_without_retries_the_error_of_the_loss_is_reported() -> None:
    assert given_events(*DECODING, ended(LOST), retries=None)[1] == [CancelAttempt("r.1"), Fail(LOST)]


@pytest.mark.parametrize(("before", "cancels"), [((Begin(),), 0), (PREFILLING, 1), ((*DECODING, ended(LOST)), 0)])
def test_a_deadline_or_the_caller_ends_a_request_in_every_state(before: tuple[JourneyEvent, ...], cancels: int) -> None:
    state, actions = given_events(*before, DeadlinePassed())
    *cancelled, fail = actions
    assert state.ended and len(cancelled) == cancels
    assert isinstance(fail, Fail) and isinstance(fail.error, DeadlineExceeded) and "60.0 s" in str(fail.error)

    state, actions = given_events(*before, CallerLeft())
    assert state.ended and [type(action) for action in actions] == [CancelAttempt] * cancels


def test_an_event_without_a_row_is_refused() -> None:
    with pytest.raises(AssertionError, match="r: tokens while prefilling"):
        given_events(*PREFILLING, chunk(1))


ANSWER = tuple(range(100, 112))


@dataclass
class World:
    """Imitates what one request meets, replicas, board and clock: it knows actions and events, but not the table."""

    open: str = ""
    position: int = 0
    sent: list[str] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    ends: list[Action | None] = field(default_factory=list)

    def perform(self, action: Action) -> None:
        assert not self.ends, "nothing follows the end"
        match action:
            case ChooseReplicas():
                self.open = "route"
            case Prefill(request) | Serve(request):
                assert request.id not in self.sent, "each attempt has an id of its own"
                assert list(request.generated) == self.delivered, "an attempt continues from what the caller has"
                self.sent.append(request.id)
                self.position = len(request.generated)
                self.open = "prefill" if isinstance(action, Prefill) else "serve"
            case Decode():
                assert self.open == "prefill"
                self.open = "decode"
            case CancelAttempt(request_id):
                assert request_id == self.sent[-1] and self.open in ("prefill", "serve", "decode")
                self.open = ""
            case Wait():
                self.open = "wait"
            case Deliver(chunk):
                self.delivered += chunk.tokens
            case Finish() | Fail():
                self.ends.append(action)

    def events(self) -> st.SearchStrategy[JourneyEvent]:
        """Return the events that can happen now."""
        errors = st.sampled_from([LOST, PREEMPTED, EngineFailure("bug"), None, BadRequest("x", "y")])
        anywhere = st.sampled_from([DeadlinePassed(), CallerLeft()])
        here: st.SearchStrategy[JourneyEvent]
        match self.open:
            case "route":
                here = st.sampled_from([Routed(), Routed(("d",))])
            case "wait":
                here = st.just(Waited())
            case "decode":
                here = st.integers(1, 3).map(self._chunk) | errors.map(ended)
            case _:
                here = st.just(handoff(REQUEST)) | errors.map(ended)
        return st.one_of(*[here] * 9, anywhere)

    def _chunk(self, count: int) -> Chunk:
        tokens = ANSWER[self.position : self.position + count]
        last = self.position + count >= len(ANSWER)
        return replace(chunk(*tokens), finish=FinishReason.STOP if last else None, timings=NO_TIME if last else None)


@given(st.data(), st.integers(0, 3), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_in_every_order_of_events_a_request_ends_once_and_delivers_no_token_twice(
    data: st.DataObject, max_retries: int, budget: int
) -> None:
    """Every order of events that the world can produce has a row for each of them."""
    world, state = World(), RequestState(REQUEST, arrived_at=0.0)
    retries = RetryPolicy(max_retries, RetryBudget(budget))
    event: JourneyEvent = Begin()
    for now in range(80):
        for action in advance(state, event, float(now), retries):
            world.perform(action)
        if isinstance(event, Handoff) and world.open == "serve":
            world.open = "decode"
        if isinstance(event, Chunk):
            world.position += len(event.tokens)
        assert tuple(world.delivered) == ANSWER[: len(world.delivered)] == tuple(state.tokens)
        if isinstance(event, CallerLeft):
            world.ends.append(None)
        assert state.ended == bool(world.ends)
        if state.ended:
            break
        event = data.draw(world.events())
    assert len(world.ends) <= 1
    assert state.losses <= max_retries + 1
    if world.ends and isinstance(world.ends[0], Finish):
        assert tuple(world.delivered) == ANSWER
