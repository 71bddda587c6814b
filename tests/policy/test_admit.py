"""Tests which requests are admitted, and how many lost ones are retried."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.admit import MAX_RETRY_SECONDS, RetryBudget, refusal
from policy.route import rank_prefill
from tests.policy.replicas import replica

QUEUES = ({0: 4000}, {0: 3000, 5: 9000})
POOL = [replica(str(n), queued_tokens=queue, tokens_per_second=1000.0) for n, queue in enumerate(QUEUES)]


def asked(num_tokens: int = 100, priority: int = 0, seconds_left: float = math.inf, max_queued: float = math.inf):  # type: ignore[no-untyped-def]
    return refusal(rank_prefill(POOL, num_tokens, {}, priority), POOL, priority, seconds_left, max_queued)


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    refused = asked(seconds_left=2.0)

    assert refused is not None
    assert refused.reason == "the first token would take 3.1 s, the deadline is in 2.0 s (deadline_seconds)"
    assert refused.retry_seconds == pytest.approx(1.1)
    assert asked(seconds_left=3.2) is None


def test_a_full_queue_refuses_with_the_seconds_until_it_has_room() -> None:
    refused = asked(max_queued=2.5)

    assert refused is not None
    assert "3.0 s of prompts are queued, 2.5 s may be" in refused.reason
    assert refused.retry_seconds == pytest.approx(0.5)


def test_a_higher_priority_sees_a_shorter_queue() -> None:
    assert asked(priority=-1, max_queued=2.5) is None
    assert asked(priority=5, max_queued=3.5) is not None


def test_a_long_request_does_not_fill_an_empty_queue() -> None:
    idle = [replica("idle", tokens_per_second=10.0)]

    assert refusal(rank_prefill(idle, 1000, {}), idle, 0, math.inf, 1.0) is None


def test_every_request_is_admitted_without_measurements() -> None:
    assert refusal([], [], 0, 0.1, 0.1) is None
    new = [replica("new", queued_tokens={0: 100_000})]
    assert refusal(rank_prefill(new, 10, {}), new, 0, 0.1, 0.1) is None


def test_retry_seconds_are_limited() -> None:
    refused = asked(num_tokens=10**9, seconds_left=1.0)

    assert refused is not None and refused.retry_seconds == MAX_RETRY_SECONDS


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 20))
def test_retries_never_exceed_the_budget_and_the_share_of_successes(ends: list[bool], max_retries: int) -> None:
    """In any order of ends: retries taken <= max_retries + share x successful requests."""
    budget, taken, well = RetryBudget(max_retries, share=0.5), 0, 0
    for good in ends:
        if good:
            budget.give_back()
            well += 1
        else:
            taken += budget.take()
        assert taken <= max_retries + 0.5 * well
        assert 0 <= budget.left <= max_retries


def test_the_budget_prevents_a_retry_storm() -> None:
    budget = RetryBudget(3)

    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    budget.give_back()
    budget.give_back()
    assert [budget.take() for _ in range(2)] == [True, False]
