"""Tests the rankings of replicas against values worked out by hand, and what must hold for all numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.prefix import PrefixIndex
from policy.route import (
    PoolPolicy,
    Ranked,
    choose_pool,
    first_token_seconds,
    has_room,
    rank_decode,
    rank_local,
    rank_prefill,
    rate_at,
    user_rate,
)
from tests.policy.replicas import replica

PACE = {"tokens_per_second": 1000.0, "min_step_seconds": 0.01}


def test_the_first_token_waits_for_queued_and_for_uncached_tokens() -> None:
    stats = replica(queued_tokens={0: 500, 1: 300, -1: 100}, **PACE)

    assert first_token_seconds(stats, 200, 50, priority=0) == pytest.approx(0.01 + (500 + 100 + 150) / 1000)
    assert first_token_seconds(stats, 200, 0, priority=-1) == pytest.approx(0.01 + (100 + 200) / 1000)


def test_a_cached_prefix_wins_until_its_replicas_queue_costs_more() -> None:
    for queued, best in ((300, "warm"), (500, "cold")):
        pool = [replica("warm", queued_tokens={0: queued}, **PACE), replica("cold", **PACE)]

        assert rank_prefill(pool, 1000, {"warm": 400})[0].replica == best


def test_of_equal_replicas_the_one_with_fewer_tokens_computed_is_first() -> None:
    pool = [replica("a", tokens=10, **PACE), replica("b", tokens=5, **PACE)]

    assert [ranked.replica for ranked in rank_prefill(pool, 10, {})] == ["b", "a"]


@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 9999)), min_size=1, max_size=6), st.integers(1, 5000))
def test_prefill_replicas_are_ranked_by_the_seconds_to_the_first_token(
    pool: list[tuple[int, int]], num_tokens: int
) -> None:
    replicas = [
        replica(str(n), queued_tokens={0: queued}, tokens_per_second=float(pace))
        for n, (queued, pace) in enumerate(pool)
    ]

    ranked = rank_prefill(replicas, num_tokens, {})

    assert sorted(r.replica for r in ranked) == sorted(r.identity.replica for r in replicas)
    assert [r.expected for r in ranked] == pytest.approx(sorted((queued + num_tokens) / pace for queued, pace in pool))


def test_rates_are_interpolated_and_shared_beyond_max_requests() -> None:
    rates = {1: 100.0, 4: 40.0, 8: 30.0}

    assert rate_at(rates, 1, 8) == 100.0
    assert rate_at(rates, 2, 8) == pytest.approx(80.0)
    assert rate_at(rates, 8, 8) == 30.0
    assert rate_at(rates, 16, 8) == pytest.approx(15.0)
    assert rate_at({}, 3, 8) == 0.0


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=6), st.integers(1, 200))
def test_one_more_request_never_makes_another_faster(rates: list[float], requests: int) -> None:
    curve = {2**n: rate for n, rate in enumerate(sorted(rates, reverse=True))}
    max_requests = max(curve)

    assert rate_at(curve, requests + 1, max_requests) <= rate_at(curve, requests, max_requests) * (1 + 1e-9)


def decode(name: str, running: int = 0, **changes: object):  # type: ignore[no-untyped-def]
    rates = changes.pop("request_rates", {1: 100.0, 8: 30.0})
    return replica(name, role="decode", running=running, request_rates=rates, **changes)  # type: ignore[arg-type]


def test_decode_counts_the_new_request_in_each_replicas_rate() -> None:
    fast = {1: 200.0, 8: 60.0}
    pool = [decode("busy but fast", running=3, request_rates=fast), decode("idle")]

    assert [r.replica for r in rank_decode(pool, 64, 16)] == ["busy but fast", "idle"]
    assert user_rate(pool[0]) == pytest.approx(200 - 3 * 20.0)


def test_replicas_with_room_rank_before_faster_ones() -> None:
    pool = [
        decode("no pages", free=3),
        decode("no seat", running=8),
        decode("slow", running=7),
    ]

    assert [r.replica for r in rank_decode(pool, 64, 16)] == ["slow", "no pages", "no seat"]
    assert has_room(pool[0], 48, 16) and not has_room(pool[0], 49, 16)


def test_without_measured_steps_the_replica_with_fewest_requests_is_first() -> None:
    pool = [
        decode("a", running=2, request_rates={}),
        decode("b", running=1, waiting=2, request_rates={}),
        decode("c", running=1, request_rates={}),
    ]

    assert [r.replica for r in rank_decode(pool, 1, 16)] == ["c", "a", "b"]


POOLS = {"gpu": [Ranked("a", 30.0)], "lpu": [Ranked("b", 90.0)], "empty": []}


@pytest.mark.parametrize(
    ("policy", "target", "pool"),
    [
        (PoolPolicy.FIRST, None, "gpu"),
        (PoolPolicy.FASTEST, None, "lpu"),
        (PoolPolicy.SPILL, 20.0, "gpu"),
        (PoolPolicy.SPILL, 50.0, "lpu"),
        (PoolPolicy.SPILL, 500.0, "lpu"),
    ],
)
def test_the_pool_policy_chooses_for_a_request_that_names_no_pool(policy: PoolPolicy, target: float, pool: str) -> None:
    assert choose_pool(policy, POOLS, target) == pool


def test_no_pool_is_chosen_if_none_has_replicas() -> None:
    assert choose_pool(PoolPolicy.FIRST, {"gpu": []}) is None


TOKENS = tuple(range(100))


def test_a_prompt_that_was_sent_counts_as_cached_except_its_last_token() -> None:
    index = PrefixIndex(page_tokens=16)
    index.note("a", TOKENS[:48])
    index.note("b", TOKENS[:32])

    assert index.known_tokens(TOKENS) == {"a": 48, "b": 32}
    assert index.known_tokens(TOKENS[:32]) == {"a": 31, "b": 31}
    assert index.known_tokens((7, *TOKENS)) == {}
    assert index.known_tokens(TOKENS, salt="another tenant") == {}


def test_replicas_that_are_gone_leave_no_entries() -> None:
    index = PrefixIndex(page_tokens=16)
    index.note("a", TOKENS)
    index.note("b", TOKENS[:16])

    index.keep_only({"b"})

    assert index.known_tokens(TOKENS) == {"b": 16}
    assert len(index) == 1


def test_the_index_is_bounded_and_drops_the_least_recently_used() -> None:
    index = PrefixIndex(page_tokens=2, max_pages=4)
    index.note("a", (1, 2, 3, 4))
    index.note("a", (9, 9, 8, 8))
    assert index.known_tokens((1, 2, 3, 4, 5)) == {"a": 4}

    index.note("a", (5, 5, 6, 6))

    assert len(index) == 4
    assert index.known_tokens((1, 2, 3, 4, 5)) == {"a": 4}
    assert index.known_tokens((9, 9, 8, 8, 0)) == {}


def colocated(name: str, **changes: object):  # type: ignore[no-untyped-def]
    return decode(name, **{"tokens_per_second": 100.0, "min_step_seconds": 0.01, **changes})


def test_local_prefill_costs_the_wait_of_the_request_and_of_all_running_ones() -> None:
    pool = [
        colocated("busy", running=3),
        colocated("idle"),
        colocated("knows it", running=3),
        decode("cannot"),
        colocated("full", free=0),
    ]

    ranked = rank_local(pool, 50, {"knows it": 48}, page_tokens=16)

    assert [one.replica for one in ranked] == ["knows it", "idle", "busy"]
    assert ranked[0].expected == pytest.approx(4 * (0.01 + 2 / 100))
    assert ranked[1].expected == pytest.approx(0.01 + 50 / 100)
    assert ranked[2].expected == pytest.approx(4 * (0.01 + 50 / 100))
