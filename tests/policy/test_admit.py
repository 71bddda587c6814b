"""Who is let in, and how often requests may be sent round again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.admit import MAX_RETRY_SECONDS, RetryBudget, refusal
from policy.route import rank_prefill
from tests.policy.replicas import replica

QUEUES = ({0: 4000}, {0: 3000, 5: 9000})
POOL = [replica(str(n), queued_tokens=queue, tokens_per_second=1000.0) for n, queue in enumerate(QUEUES)]


def asked(num_tokens: int = 100, priority: int = 0, seconds_left: float = math.inf, most: float = math.inf):  # type: ignore[no-untyped-def]
    return refusal(rank_prefill(POOL, num_tokens, {}, priority), POOL, priority, seconds_left, most)


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    refused = asked(seconds_left=2.0)

    assert refused is not None
    assert refused.reason == "its first token would come in 3.1 s, and it has 2.0 s (deadline_seconds)"
    assert refused.retry_seconds == pytest.approx(1.1)
    assert asked(seconds_left=3.2) is None


def test_a_full_queue_is_refused_with_the_time_until_it_is_not() -> None:
    refused = asked(most=2.5)

    assert refused is not None
    assert "3.0 s of prompts wait already, 2.5 s may" in refused.reason
    assert refused.retry_seconds == pytest.approx(0.5)


def test_who_is_served_first_sees_a_shorter_queue() -> None:
    assert asked(priority=-1, most=2.5) is None
    assert asked(priority=5, most=3.5) is not None


def test_a_long_request_in_an_empty_queue_is_not_a_full_queue() -> None:
    idle = [replica("idle", tokens_per_second=10.0)]

    assert refusal(rank_prefill(idle, 1000, {}), idle, 0, math.inf, 1.0) is None


def test_where_nothing_is_known_everybody_may_come() -> None:
    assert refusal([], [], 0, 0.1, 0.1) is None
    new = [replica("new", queued_tokens={0: 100_000})]
    assert refusal(rank_prefill(new, 10, {}), new, 0, 0.1, 0.1) is None


def test_a_hint_is_never_longer_than_anybody_would_wait() -> None:
    refused = asked(num_tokens=10**9, seconds_left=1.0)

    assert refused is not None and refused.retry_seconds == MAX_RETRY_SECONDS


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 20))
def test_attempts_more_never_pass_the_budget_and_what_was_earned(ends: list[bool], most: int) -> None:
    """Whatever the order: attempts taken <= most + share x requests that ended well."""
    budget, taken, well = RetryBudget(most, share=0.5), 0, 0
    for good in ends:
        if good:
            budget.give_back()
            well += 1
        else:
            taken += budget.take()
        assert taken <= most + 0.5 * well
        assert 0 <= budget.left <= most


def test_when_everything_fails_there_is_no_storm() -> None:
    budget = RetryBudget(3)

    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    budget.give_back()
    budget.give_back()
    assert [budget.take() for _ in range(2)] == [True, False]
