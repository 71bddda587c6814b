"""Tests that scaling keeps its bounds, is monotone in load, settles under constant load, and is repeatable."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.stats import PageCounts
from policy.load import FrontLoad, Load, ReplicaLoad
from policy.scale import PREFILL, Bounds, Decision, State, Targets, decide, within_budget
from tests.policy.replicas import replica

PACE, MAX_REQUESTS = 1000.0, 8
RATES = {1: 100.0, 2: 80.0, 4: 60.0, 8: 30.0}
BOUNDS = dict.fromkeys((PREFILL, "gpu"), Bounds(min_replicas=1, max_replicas=10))
TARGETS = Targets(ttft_seconds=1.0, tokens_per_second=50.0, down_seconds=30.0)
NO_ANSWERS = FrontLoad()
AT_TARGET = 5  # requests at which a replica still gives 50 tokens/s: 60 at 4, 52.5 at 5, 45 at 6


def prefiller(queued: float = 0.0, tokens: float = 0.0) -> ReplicaLoad:
    busy = min(queued, 1.0)
    return ReplicaLoad(
        queued_tokens=queued,
        tokens=tokens,
        tokens_per_second=PACE,
        min_step_seconds=0.01,
        running=busy,
        requests=tokens / 100,
    )


def decoder(running: float = 0.0, waiting: float = 0.0, pages_used: float = 0.0, **changes: object) -> ReplicaLoad:
    fields = {
        "running": running,
        "waiting": waiting,
        "pages_used": pages_used,
        "max_requests": MAX_REQUESTS,
        "rates": RATES,
    }
    return ReplicaLoad(**{"accepted_length": 2.0, **fields, **changes})  # type: ignore[arg-type]


def load(
    prefill: list[ReplicaLoad], decode: list[ReplicaLoad], now: float = 0.0, front: FrontLoad = NO_ANSWERS
) -> Load:
    return Load(
        now=now,
        replicas={PREFILL: len(prefill), "gpu": len(decode)},
        prefill={f"p{n}": one for n, one in enumerate(prefill)},
        decode={"gpu": {f"d{n}": one for n, one in enumerate(decode)}},
        front=front,
    )


def wanted(now: Load, state: State | None = None, targets: Targets = TARGETS) -> dict[str, int]:
    return dict(decide(targets, BOUNDS, now, state or State())[0].replicas)


def test_decode_has_as_many_replicas_as_its_users_need_at_the_target() -> None:
    for users in (1, AT_TARGET, AT_TARGET + 1, 3 * AT_TARGET, 3 * AT_TARGET + 1):
        assert wanted(load([prefiller()], [decoder(running=users)]))["gpu"] == math.ceil(users / AT_TARGET)


def test_requests_in_prefill_count_for_decode() -> None:
    waiting = replace(prefiller(queued=100), waiting=6.0, running=1.0)

    assert wanted(load([waiting], [decoder(running=4)]))["gpu"] == math.ceil((4 + 7) / AT_TARGET)


def test_longer_accepted_length_needs_fewer_replicas() -> None:
    """A longer accepted length raises the rates, here by two."""
    quick = {count: 2 * rate for count, rate in RATES.items()}

    assert wanted(load([prefiller()], [decoder(running=16, rates=quick)]))["gpu"] == 2
    assert wanted(load([prefiller()], [decoder(running=16)]))["gpu"] == 4


def test_pages_can_limit_a_replicas_capacity() -> None:
    """Two requests use 0.8 of the pages, so 0.9 of them hold 2.25 requests."""
    assert wanted(load([prefiller()], [decoder(running=2, waiting=4, pages_used=0.8)]))["gpu"] == math.ceil(6 / 2.25)


def test_prefill_is_sized_by_arriving_and_queued_tokens() -> None:
    state = State()
    for second in range(40):  # 2,000 tokens arrive per second, 2,000 are computed, 300 are queued
        now = load([prefiller(300, tokens=2000.0 * second)], [decoder()], now=float(second))
        decision, state = decide(TARGETS, BOUNDS, now, state)

    assert state.tokens_per_second == pytest.approx(2000, rel=0.01)
    assert decision.replicas[PREFILL] == math.ceil((2000 + 300) / PACE / 0.85)


def test_a_target_beyond_a_lone_requests_rate_adds_no_replicas() -> None:
    """A lone request gets 100 tokens/s: with a target of 500, replicas are filled to four fifths of 100 instead."""
    greedy = replace(TARGETS, tokens_per_second=500.0)

    assert wanted(load([prefiller()], [decoder(running=2)]), targets=greedy)["gpu"] == 1


def test_a_missed_target_adds_a_replica_though_there_should_be_enough() -> None:
    slow = FrontLoad(ttft_seconds=3.0, user_rate=20.0)
    busy = load([prefiller(100, tokens=2000.0)], [decoder(running=3)] * 2, front=slow)

    decision, state = decide(TARGETS, BOUNDS, busy, State())

    assert decision.replicas == {PREFILL: 2, "gpu": 3}
    assert all("though there should be enough" in reason for reason in decision.reasons.values())
    more = load([prefiller(100, tokens=2000.0)] * 2, [decoder(running=3)] * 3, now=2.0, front=slow)
    assert wanted(more, state) == {PREFILL: 2, "gpu": 3}, "the last replicas have only just started"
    assert wanted(replace(more, now=20.0), state) == {PREFILL: 3, "gpu": 4}


def test_a_missed_target_adds_none_while_a_replica_is_idle() -> None:
    slow = FrontLoad(ttft_seconds=3.0, user_rate=20.0)
    one_idle = load([prefiller(100), prefiller()], [decoder(running=3), decoder(running=1)], front=slow)

    assert wanted(one_idle) == {PREFILL: 2, "gpu": 2}


def test_a_missed_target_adds_none_if_a_lone_prompt_takes_longer() -> None:
    """Prompts of 2,000 tokens take 2 s, and the target is 1 s: more replicas would wait as long."""
    long = replace(prefiller(100, tokens=20_000.0), requests=10.0)

    assert wanted(load([long], [decoder()], front=FrontLoad(ttft_seconds=3.0)))[PREFILL] == 1


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20_000), st.integers(0, 20_000), st.integers(1, 4))
def test_more_load_never_means_fewer_replicas(users: int, more: int, queued: int, more_queued: int, count: int) -> None:
    less = wanted(load([prefiller(queued)] * count, [decoder(running=users / count)] * count))
    grown = load([prefiller(queued + more_queued)] * count, [decoder(running=(users + more) / count)] * count)

    assert all(wanted(grown)[pool] >= less[pool] for pool in BOUNDS)


replica_loads = st.builds(
    decoder,
    running=st.floats(0, 8),
    waiting=st.floats(0, 50),
    pages_used=st.floats(0, 1),
    rates=st.sampled_from([RATES, {}, {1: 1.0, 8: 0.5}]),
)


@given(
    st.lists(st.builds(prefiller, st.floats(0, 1e6), st.floats(0, 1e6)), min_size=0, max_size=4),
    st.lists(replica_loads, min_size=0, max_size=4),
    st.tuples(st.integers(0, 3), st.integers(3, 9)),
    st.floats(1, 40),
)
def test_a_decision_keeps_bounds_and_budget_under_any_load(
    prefill: list[ReplicaLoad], decode: list[ReplicaLoad], limits: tuple[int, int], devices: float
) -> None:
    bounds = {
        PREFILL: Bounds(min_replicas=1, max_replicas=limits[1]),
        "gpu": Bounds(min_replicas=limits[0], max_replicas=limits[1], devices=4.0, watts=700),
    }
    targets = replace(TARGETS, devices=devices, watts=3000.0)

    decision, _ = decide(targets, bounds, load(prefill, decode), State())

    for pool, bound in bounds.items():
        assert bound.min_replicas <= decision.replicas[pool] <= bound.max_replicas
    least = {pool: max(1, bound.min_replicas) for pool, bound in bounds.items()}
    at_least = all(decision.replicas[pool] <= least[pool] for pool in bounds)
    assert at_least or (decision.replicas[PREFILL] + 4 * decision.replicas["gpu"] <= devices)
    assert at_least or 700 * decision.replicas["gpu"] <= 3000


def test_a_budget_removes_replicas_where_the_others_have_least_work() -> None:
    targets, bounds = replace(TARGETS, devices=5.0), {PREFILL: Bounds(max_replicas=9), "gpu": Bounds(max_replicas=9)}

    assert within_budget(targets, bounds, {PREFILL: 4, "gpu": 4}, {PREFILL: 3.5, "gpu": 1.0}) == {PREFILL: 4, "gpu": 1}
    assert within_budget(targets, bounds, {PREFILL: 4, "gpu": 4}, {PREFILL: 2.0, "gpu": 2.0}) == {PREFILL: 3, "gpu": 2}


@dataclass
class Service:
    """A model of a service whose requests have `prompt` tokens and decode `stay` seconds; replicas start in `start`."""

    arrivals: Callable[[float], float]  # requests per second, at a time
    prompt: float = 100.0
    stay: float = 4.0
    start: float = 3.0
    front: FrontLoad = NO_ANSWERS
    state: State = field(default_factory=State)
    targets: Targets = TARGETS
    history: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def run(self, seconds: int) -> "Service":
        counts = dict.fromkeys(BOUNDS, 1)
        ready: dict[str, list[float]] = {pool: [-math.inf] for pool in BOUNDS}
        queued, users = 0.0, 0.0
        tokens = [0.0] * 99
        for second in range(seconds):
            now = float(second)
            alive = {pool: max(1, sum(at <= now for at in ready[pool])) for pool in BOUNDS}
            come = self.arrivals(now)
            queued += come * self.prompt
            done = min(queued, PACE * alive[PREFILL])
            queued -= done
            tokens = [have + done / alive[PREFILL] * (n < alive[PREFILL]) for n, have in enumerate(tokens)]
            users = max(0.0, users + done / self.prompt - users / self.stay)
            at = load(
                [prefiller(queued / alive[PREFILL], tokens=tokens[n]) for n in range(alive[PREFILL])],
                [decoder(running=users / alive["gpu"])] * alive["gpu"],
                now,
                self.front,
            )
            at = replace(at, replicas=counts)
            decision, self.state = decide(self.targets, BOUNDS, at, self.state)
            self.loads.append(at)
            self.decisions.append(decision)
            for pool, count in decision.replicas.items():
                ready[pool] = ready[pool][:count] + [now + self.start] * (count - counts[pool])
            counts = dict(decision.replicas)
            self.history.append((now, counts))
        return self

    def changes(self, pool: str, after: float = 0.0) -> list[int]:
        counts = [count[pool] for now, count in self.history if now >= after]
        return [b - a for a, b in pairwise(counts) if a != b]


@settings(deadline=None, max_examples=40)
@given(st.floats(0.1, 50.0))
def test_replicas_settle_under_a_constant_load(rate: float) -> None:
    service = Service(arrivals=lambda now: rate).run(300)

    for pool in BOUNDS:
        assert all(change > 0 for change in service.changes(pool, after=60)), (pool, service.changes(pool))
        assert service.changes(pool, after=150) == []


def test_after_a_burst_both_pools_return_to_their_size() -> None:
    service = Service(arrivals=lambda now: 30.0 if 60 <= now < 90 else 1.0).run(300)

    at = dict(service.history)
    assert at[59.0] == {PREFILL: 1, "gpu": 1}
    assert at[89.0][PREFILL] >= 3 and at[89.0]["gpu"] >= 5
    assert at[299.0] == at[59.0]
    for pool in BOUNDS:
        signs = [change > 0 for change in service.changes(pool)]
        assert signs == sorted(signs, reverse=True), f"{pool} goes up and down: {service.changes(pool)}"


def test_a_decision_follows_a_breach_within_five_seconds() -> None:
    service = Service(arrivals=lambda now: 1.0 if now < 60 else 30.0).run(80)

    for pool in BOUNDS:
        first = next(now for now, count in service.history if count[pool] > 1)
        assert 60 <= first <= 65


def test_a_recorded_load_replays_to_the_same_decisions() -> None:
    service = Service(arrivals=lambda now: 20.0 * abs(math.sin(now / 20))).run(120)
    lines = [json.dumps(at.as_json()) for at in service.loads]

    state, replayed = State(), []
    for line in lines:
        decision, state = decide(TARGETS, BOUNDS, Load.from_json(json.loads(line)), state)
        replayed.append(decision)

    assert replayed == service.decisions
    assert len({tuple(decision.replicas.items()) for decision in replayed}) > 3


def test_predictions_are_compared_with_measurements() -> None:
    front = FrontLoad(ttft_seconds=0.3, user_rate=55.0)
    service = Service(arrivals=lambda now: 1.0 if now < 10 else 10.0, front=front).run(90)

    outcomes = [outcome for decision in service.decisions for outcome in decision.outcomes]

    last = {pool: [o for o in outcomes if o.prediction.pool == pool][-1] for pool in BOUNDS}
    assert last["gpu"].measured == 55.0 and last[PREFILL].measured == 0.3
    for pool, outcome in last.items():
        assert outcome.prediction.replicas == service.history[-1][1][pool]
    assert last["gpu"].prediction.value >= 50.0
    assert 0.1 <= last[PREFILL].prediction.value <= 2.0
    made = [p for decision in service.decisions for p in decision.predictions]
    assert len(outcomes) < len(made), "some were overtaken by the next change"


def test_a_new_or_restarted_replica_adds_no_demand() -> None:
    """Counters that fall or appear do not count as arriving tokens."""
    state = decide(TARGETS, BOUNDS, load([prefiller(tokens=1000.0)], [decoder()], now=0.0), State())[1]
    with_another = load([prefiller(tokens=1000.0), prefiller(tokens=90_000.0)], [decoder()], now=1.0)
    assert decide(TARGETS, BOUNDS, with_another, state)[1].tokens_per_second == 0.0
    started_anew = load([prefiller(tokens=0.0)], [decoder()], now=1.0)
    assert decide(TARGETS, BOUNDS, started_anew, state)[1].tokens_per_second == 0.0


def test_statistics_become_a_load_and_survive_as_flat_numbers() -> None:
    pages = {
        "full": PageCounts(total=10, free=2, held=6, quarantined=1, cached=1),
        "window": PageCounts(total=4, free=4, held=0, quarantined=0),
    }
    stats = replica(
        "d",
        role="decode",
        running=3,
        waiting=2,
        request_rates=RATES,
        accepted_length=1.5,
        pages=pages,
        queued_tokens={0: 5, 1: 6},
    )

    found = ReplicaLoad.of(stats)

    assert (found.users, found.pages_used, found.queued_tokens) == (5.0, pytest.approx(0.7), 11)
    assert ReplicaLoad.from_metrics(found.metrics) == found
    assert all(isinstance(value, float) for value in found.metrics.values())
