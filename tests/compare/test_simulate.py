"""The cluster in virtual time: nothing is lost, faster is never slower, and it is the engines' own code that runs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compare.replica
import compare.scaling
import compare.simulated_gateway
import decode.decoder
import decode.plan
import local.assemble
import local.build
import local.colocated
import policy.board
import policy.journey
import policy.scale
import prefill.prefiller
from compare.replica import SimulatedPool
from compare.simulate import simulate
from compare.simulator.acceptance import Rates, Recorded
from compare.simulator.mixes import FixedSize, generate
from compare.simulator.outcome import End, SimulationResult
from compare.simulator.workload import Arrival, PromptSegment, Workload
from engine.errors import ConfigError, EngineFailure, HandoffLost, SparkpoolError
from engine.types import Request
from hardware.link import Link
from policy.journey import RETRY_SECONDS
from tests.compare.machines import FLASH_BYTES, GPU, Linear, Steady, simulated_pool, system

SMALL = {"max_requests": 8, "max_waiting": 1000}


def burst(count: int = 60, tokens: int = 200, answer: int = 40) -> Workload:
    return Workload(tuple(Arrival(at=0.0, input_tokens=tokens, output_tokens=answer) for _ in range(count)))


def test_the_code_that_runs_is_the_clusters_own() -> None:
    assert compare.replica.assemble is local.build.assemble is local.assemble.assemble
    assert local.assemble.Decoder is decode.decoder.Decoder
    assert local.assemble.Prefiller is prefill.prefiller.Prefiller
    assert local.assemble.ColocatedEngine is local.colocated.ColocatedEngine
    assert local.assemble.planner_of is decode.plan.planner_of
    assert compare.simulated_gateway.Board is policy.board.Board
    assert compare.scaling.decide is policy.scale.decide
    assert compare.simulated_gateway.advance is policy.journey.advance


def test_one_request_alone() -> None:
    """A prompt of one step, its pages over the link, then a step for each token after the first."""
    (one,) = simulate(system(), Workload((Arrival(at=2.0, input_tokens=500, output_tokens=11),))).served

    assert one.end == End.DONE and one.tokens == 11
    assert one.ttft == pytest.approx(GPU.prefill_seconds(1, 500, 0), rel=1e-6)
    decoding = sum(GPU.verify_seconds(1, 1, 500 + n) for n in range(10))
    pages = math.ceil(500 / 64) * 64 * FLASH_BYTES / 50e9 + 1e-4
    assert one.ended - one.first == pytest.approx(decoding + pages, abs=2.5e-3)  # and what waiting engines sleep


def test_an_endless_link_costs_nothing() -> None:
    alone = Workload((Arrival(at=0.0, input_tokens=5000, output_tokens=2),))
    slow = simulate(system(simulated=simulated_pool(link=Link(1e8, 0.5))), alone).served[0]
    fast = simulate(system(simulated=simulated_pool(link=Link(1e18, 0.0))), alone).served[0]

    assert slow.ended - fast.ended > 0.5
    assert fast.ended - fast.first < GPU.verify_seconds(1, 1, 5000) + 3e-3


@given(
    st.integers(1, 25),
    st.integers(1, 900),
    st.integers(1, 40),
    st.sampled_from([(), (0.8, 0.6), (0.9, 0.9, 0.5)]),
    st.sampled_from(["causal", "lagged", "fixed"]),
    st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost(
    count: int, tokens: int, answer: int, rates: tuple[float, ...], planner: str, local_chunks: int
) -> None:
    """Requests in are done, refused or failed; every answer is whole; device time adds up; no page is leaked (each
    replica checks its own at the end)."""
    config = {**SMALL, "planner": planner, "fixed_drafts": 2, "local_chunk_tokens": 64 * local_chunks}
    workload = generate(FixedSize(tokens, answer), rate=30.0, seed=count, requests=count)
    run = simulate(system(decode=config, simulated=simulated_pool(rates, pages=60)), workload)

    assert len(run.served) == count
    assert all(one.end == End.DONE and one.tokens == answer for one in run.served)
    for machine in run.machines:
        assert 0 <= machine.busy_seconds <= machine.seconds + 1e-9
    said = sum(machine.tokens for machine in run.machines if machine.pool == "default")
    assert said >= count * answer  # those that were preempted said their first tokens again


def test_few_pages_preempt_and_every_answer_is_whole() -> None:
    run = simulate(system(decode=SMALL, simulated=simulated_pool(pages=12)), burst(12, tokens=100, answer=200))

    assert sum(one.preemptions for one in run.served) > 0
    assert all(one.end == End.DONE and one.tokens == 200 for one in run.served)


def test_what_waits_too_long_is_refused() -> None:
    rest = {"gateway": {"max_queued_seconds": 0.2}}
    run = simulate(system(decode=SMALL, rest=rest), generate(FixedSize(2000, 5), rate=200.0, seed=1, requests=200))

    assert 0 < len(run.of(End.REFUSED)) < 200
    assert len(run.done) + len(run.of(End.REFUSED)) == 200
    assert all(one.ttft < 1.5 for one in run.done)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        (simulated_pool(link=Link(1e8, 1e-3)), simulated_pool(link=Link(1e11, 1e-3))),
        (simulated_pool(pages=40), simulated_pool(pages=4000)),
        (simulated_pool(times=Linear(step=1e-2)), simulated_pool(times=Linear(step=5e-3))),
    ],
    ids=["link", "memory", "steps"],
)
def test_a_better_machine_is_never_slower(slower: SimulatedPool, faster: SimulatedPool) -> None:
    results = [simulate(system(decode=SMALL, simulated=simulated), burst()) for simulated in (slower, faster)]

    assert results[1].throughput >= results[0].throughput


def test_drafts_that_survive_make_fewer_steps() -> None:
    config = {**SMALL, "planner": "fixed", "fixed_drafts": 3}
    plain = simulate(system(decode=SMALL), burst(8, answer=400))
    drafted = simulate(system(decode=config, simulated=simulated_pool((1.0, 1.0, 1.0))), burst(8, answer=400))
    vain = simulate(system(decode=config, simulated=simulated_pool((0.0, 0.0, 0.0))), burst(8, answer=400))

    assert steps(drafted) == pytest.approx(steps(plain) / 4, rel=0.1)
    assert steps(vain) == pytest.approx(steps(plain), rel=0.05)


def steps(run: SimulationResult) -> int:
    return sum(machine.steps for machine in run.machines if machine.pool == "default")


def test_accepted_lengths_come_out_as_they_went_in() -> None:
    """V4-Pro's published ones: 1.79 with one draft, 2.27 with two, 2.49 with three."""
    acceptance = Rates.of_lengths(1.79, 2.27, 2.49)
    config = {**SMALL, "planner": "fixed", "fixed_drafts": 3}
    run = simulate(system(decode=config, simulated=simulated_pool(acceptance.by_domain[""])), burst(8, answer=2000))
    machine = next(one for one in run.machines if one.pool == "default")

    per_request_step = machine.verified / 3
    assert 1 + machine.accepted / per_request_step == pytest.approx(2.49, abs=0.03)


@pytest.mark.parametrize("error", [EngineFailure, HandoffLost])
@pytest.mark.parametrize("losses", [1, 3, 4])
def test_what_the_gateway_tries_again_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: type[SparkpoolError], losses: int
) -> None:
    """The simulator once gave up on engine failures, which the gateway does not. By default a request has 3 retries."""
    arrived = breaks(monkeypatch, losses, error)
    (one,) = simulate(system(decode=SMALL), Workload((Arrival(at=0.0, input_tokens=64, output_tokens=5),))).served

    tries = min(losses + 1, 4)
    assert one.end == (End.DONE if losses <= 3 else End.FAILED)
    assert arrived == [f"0.{attempt}" for attempt in range(1, tries + 1)]
    waited = sum(RETRY_SECONDS * 2**n for n in range(tries - 1))
    assert waited <= one.ended <= waited + 0.1


def test_when_everything_is_lost_the_shared_budget_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator once had no budget: 20 requests are sent 20 times, and `max_ongoing` times more in all."""
    arrived = breaks(monkeypatch, 10**6, EngineFailure)
    rest = {"gateway": {"max_ongoing": 7, "max_queued": 100, "retries": 3}}
    run = simulate(system(decode=SMALL, rest=rest), burst(20))

    assert len(run.of(End.FAILED)) == 20
    assert len(arrived) == 20 + 7


def breaks(monkeypatch: pytest.MonkeyPatch, losses: int, error: type[SparkpoolError]) -> list[str]:
    """Let the first requests that come to a prefill replica be lost; the ids of all that came, in order."""
    arrived: list[str] = []
    add = prefill.prefiller.Prefiller.add

    def broken(self: prefill.prefiller.Prefiller, request: Request) -> None:
        arrived.append(request.id)
        if len(arrived) <= losses:
            raise error("a test")
        add(self, request)

    warm_up = prefill.prefiller.Prefiller.warm_up

    def unbroken_warm_up(self: prefill.prefiller.Prefiller) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(prefill.prefiller.Prefiller, "add", add)
            warm_up(self)

    monkeypatch.setattr(prefill.prefiller.Prefiller, "add", broken)
    monkeypatch.setattr(prefill.prefiller.Prefiller, "warm_up", unbroken_warm_up)
    return arrived


def test_domains_differ_in_what_survives() -> None:
    simulated = simulated_pool((0.5,), link=Link(1e12))
    simulated = type(simulated)(**{**vars(simulated), "acceptance": Rates({"code": (0.95,), "": (0.05,)})})
    config = {**SMALL, "planner": "fixed", "fixed_drafts": 1}
    turns = [Arrival(at=0.0, input_tokens=64, output_tokens=200, domain=name) for name in ("code", "chat")]
    run = simulate(system(decode=config, simulated=simulated), Workload(tuple(turns)))

    code, chat = run.served
    assert code.tpot < 0.7 * chat.tpot


def test_prefixes_are_found_where_they_were_sent() -> None:
    turns = tuple(
        Arrival(at=float(n), input_tokens=1000, output_tokens=2, shared=(PromptSegment("system", 900),))
        for n in range(4)
    )
    run = simulate(system(prefill={"replicas": 2}), Workload(turns))

    assert [one.cached_tokens for one in run.served] == [0, 896, 896, 896]


def test_tiers_choose_pools_and_each_has_its_pace() -> None:
    simulated = {
        "prefill": simulated_pool(),
        "gpu": simulated_pool(times=Steady(0.02)),
        "lpx": simulated_pool(times=Steady(0.001)),
    }
    rest = {"gateway": {"tiers": {"interactive": "lpx"}}}
    both = system(pools={"gpu": SMALL, "lpx": SMALL}, simulated=simulated, rest=rest)
    turns = [
        Arrival(at=0.1 * n, input_tokens=64, output_tokens=50, tier="interactive" if n % 2 else "") for n in range(8)
    ]
    run = simulate(both, Workload(tuple(turns)))

    for one in run.served:
        assert one.pool == ("lpx" if one.tier else "gpu")
        assert one.tpot == pytest.approx(0.001 if one.tier else 0.02, rel=0.1)


def test_scaling_follows_the_load() -> None:
    """policy/scale.py decides: up under a burst, down after it, and nobody is lost on the way."""
    scale = {"scale": {"min_replicas": 1, "max_replicas": 4}}
    rest = {"targets": {"tokens_per_second": 100.0, "ttft_seconds": 0.5, "down_seconds": 10.0}}
    quiet = generate(FixedSize(64, 100), rate=1.0, seed=1, seconds=90.0)
    busy = generate(FixedSize(64, 100), rate=40.0, seed=2, seconds=20.0)
    moved = [Arrival(at=a.at + 20, input_tokens=64, output_tokens=100) for a in busy]
    times = Linear(request=4e-4)
    both = Workload((*quiet, *moved))
    run = simulate(
        system(
            prefill=scale,
            decode={**SMALL, **scale},
            rest=rest,
            simulated=simulated_pool(times=times),
            start_seconds=2.0,
        ),
        both,
    )

    assert len(run.done) == len(both)
    counts = [wanted["default"] for _, wanted in run.scaled]
    assert max(counts) > 1 and counts[-1] == 1
    assert next(at for at, wanted in run.scaled if wanted["default"] > 1) >= 20.0


def test_the_seed_decides_and_nothing_else() -> None:
    workload = generate(FixedSize(200, 40), rate=20.0, seed=4, requests=40)

    def run(seed: int) -> SimulationResult:
        return simulate(
            system(decode={**SMALL, "planner": "lagged"}, simulated=simulated_pool((0.7, 0.6))), workload, seed=seed
        )

    assert run(1) == run(1)
    assert run(1).served != run(2).served


def test_closed_loop_keeps_so_many_under_way() -> None:
    run = simulate(
        system(decode=SMALL, simulated=simulated_pool(times=Steady(0.01))), burst(31), concurrency=3
    )  # often two at once

    assert len(run.done) == 31
    for one in run.served:
        assert sum(other.at <= one.at < other.ended for other in run.served) <= 3


def test_pools_need_kits_and_tiers_need_pools() -> None:
    with pytest.raises(ConfigError, match="the simulated ones are prefill"):
        system(simulated={"prefill": simulated_pool()})
    with pytest.raises(ConfigError, match=r"gateway\.tiers\.fast: there is no decode pool 'lpx'"):
        system(rest={"gateway": {"tiers": {"fast": "lpx"}}})


@pytest.mark.parametrize(
    ("rates", "says"),
    [({}, "no rates"), ({"": (1.2,)}, "no probabilities"), ({"a": (0.5,), "b": (0.5, 0.5)}, "differ in the length")],
)
def test_rates_that_are_none_are_refused(rates: dict[str, tuple[float, ...]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Rates(rates)


def test_lengths_that_grow_too_fast_are_refused() -> None:
    with pytest.raises(ConfigError, match="no accepted length"):
        Rates.of_lengths(1.5, 2.6)


def test_recorded_blocks_survive_as_they_did() -> None:
    """What was cut off by verification goes on by its confidences."""
    blocks = [((0.9, 0.5), 2, 1)] * 30 + [((0.9, 0.5), 1, 1)] * 70
    recorded = Recorded(blocks)

    assert recorded.survival("") == pytest.approx((1.0, 0.35))
