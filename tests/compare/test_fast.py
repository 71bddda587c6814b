"""The fast simulator against the exact one, on small cases; and against what can be reckoned by hand."""

import pytest

from compare.fast import FastSystem, simulate_fast
from compare.fast_replicas import FastDecodePool, FastPrefillPool
from compare.simulate import simulate
from compare.simulator.acceptance import Rates
from compare.simulator.mixes import FixedSize, generate
from compare.simulator.outcome import End, SimulationResult
from compare.simulator.workload import Arrival, PromptSegment, Workload
from hardware.link import Link
from tests.compare.machines import FLASH_BYTES, GPU, Steady, simulated_pool, system

LINK = Link(50e9, 1e-4)


def fast(
    seats: int = 64,
    fixed: int | None = None,
    rates: tuple[float, ...] = (),
    prefill: int = 1,
    decode: int = 1,
    cached_tokens: int = 0,
) -> FastSystem:
    return FastSystem(
        prefill=FastPrefillPool(replicas=prefill, times=GPU, chunk_tokens=512, cached_tokens=cached_tokens),
        decode=FastDecodePool(
            replicas=decode,
            times=GPU,
            max_requests=seats,
            cache_tokens=10**7,
            link=LINK,
            token_bytes=FLASH_BYTES,
            acceptance=Rates.of(*rates) if rates else None,
            fixed=fixed if rates else 0,
        ),
    )


@pytest.mark.parametrize(
    ("rate", "rates", "fixed"),
    [(2.0, (), None), (20.0, (), None), (20.0, (0.8, 0.7, 0.6), 3), (20.0, (0.9, 0.8, 0.6), None)],
    ids=["idle", "busy", "three drafts", "as many as pay"],
)
def test_it_agrees_with_the_exact_one(rate: float, rates: tuple[float, ...], fixed: int | None) -> None:
    """Within 1% on throughput and time per token; the first token comes when it does there."""
    workload = generate(FixedSize(300, 120), rate=rate, seed=4, requests=400)
    planner = "fixed" if fixed is not None or not rates else "causal"
    config = {"planner": planner, "fixed_drafts": fixed or 0, "max_requests": 64}
    exact = simulate(system(decode=config, simulated=simulated_pool(rates, LINK)), workload, seed=1)

    quick = simulate_fast(fast(rates=rates, fixed=fixed), workload, seed=1)

    assert quick.throughput == pytest.approx(exact.throughput, rel=0.01)
    assert quick.mean_tpot == pytest.approx(exact.mean_tpot, rel=0.01)
    assert quick.ttft(50) == pytest.approx(exact.ttft(50), rel=0.05)


def test_replicas_share_the_load_as_routing_has_it() -> None:
    workload = generate(FixedSize(300, 120), rate=40.0, seed=4, requests=600)
    config = {"planner": "fixed", "fixed_drafts": 0, "max_requests": 64, "replicas": 3}
    exact = simulate(
        system(prefill={"replicas": 2}, decode=config, simulated=simulated_pool((), LINK)), workload, seed=1
    )

    quick = simulate_fast(fast(prefill=2, decode=3), workload, seed=1)

    assert quick.throughput == pytest.approx(exact.throughput, rel=0.01)
    assert quick.mean_tpot == pytest.approx(exact.mean_tpot, rel=0.03)


def test_one_request_alone() -> None:
    """Its prompt in one step, its pages over the link, then a step for each token after the first."""
    run = simulate_fast(fast(), Workload((Arrival(at=3.0, input_tokens=500, output_tokens=11),)))
    (one,) = run.served
    step = GPU.verify_seconds(1, 1, 500)

    assert one.ttft == pytest.approx(GPU.prefill_seconds(1, 500, 0))
    assert one.ended - one.first == pytest.approx(500 * FLASH_BYTES / 50e9 + 1e-4 + 10 * step, rel=1e-4)


def test_nothing_is_lost_and_device_time_adds_up() -> None:
    workload = generate(FixedSize(700, 60), rate=50.0, seed=2, requests=500)
    run = simulate_fast(fast(seats=8, rates=(0.7, 0.5), decode=2), workload, seed=3)

    assert [one.end for one in run.served] == [End.DONE] * 500
    decoded = sum(machine.tokens for machine in run.machines if machine.pool == "decode")
    assert decoded == 500 * 59
    assert sum(machine.tokens for machine in run.machines if machine.pool == "prefill") == 500 * 700
    for machine in run.machines:
        assert 0 < machine.busy_seconds <= machine.seconds


def test_a_session_finds_its_prompt_again() -> None:
    turns = tuple(
        Arrival(at=float(n), input_tokens=1000, output_tokens=1, shared=(PromptSegment("s", 900),)) for n in range(3)
    )
    run = simulate_fast(fast(cached_tokens=10_000), Workload(turns))

    assert [one.cached_tokens for one in run.served] == [0, 900, 900]
    assert run.served[1].ttft < run.served[0].ttft


def test_the_seed_decides_and_nothing_else() -> None:
    workload = generate(FixedSize(300, 50), rate=20.0, seed=4, requests=50)

    def run(seed: int) -> SimulationResult:
        return simulate_fast(fast(rates=(0.7, 0.6)), workload, seed=seed)

    assert run(1) == run(1)
    assert run(1).served != run(2).served


def test_closed_loop_keeps_so_many_under_way() -> None:
    workload = Workload(tuple(Arrival(at=0.0, input_tokens=100, output_tokens=20) for _ in range(40)))
    run = simulate_fast(fast(), workload, concurrency=4)

    for one in run.served:
        under_way = sum(other.at <= one.at < other.ended for other in run.served)
        assert under_way <= 4
    assert len(run.done) == 40


def test_steady_times_are_what_they_say() -> None:
    assert Steady(0.01).verify_seconds(1, 1, 1) == 0.01
