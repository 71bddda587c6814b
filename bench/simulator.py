"""Measure how long the fast simulator takes for an hour of a large decode pool, and its error against the exact one.

72 GPUs decode V4-Flash, nine replicas of eight, some 800 requests each; as many prefill. Step times are a roofline with
invented losses that give steps of a plausible length, because this measures the simulator only.
"""

import time

from bench.shape import BenchReport
from compare.simulator.acceptance import Rates
from compare.simulator.fast import FastSystem, simulate_fast
from compare.simulator.fast_replicas import FastDecodePool, FastPrefillPool
from compare.simulator.mixes import FixedSize, generate
from compare.simulator.outcome import End, SimulationResult
from compare.simulator.replica import SimulatedPool
from compare.simulator.simulate import simulate
from compare.simulator.system import System
from compare.simulator.virtual import cache_layout
from engine.config import Config
from hardware.device import Device, Numbers
from hardware.link import Link
from hardware.model import Model
from hardware.placement import Placement
from hardware.roofline import DraftShape, Losses, Roofline

HOUR, MAX_SECONDS = 3600.0, 300.0
RATE, INPUT, OUTPUT = 400.0, 4096, 4096  # requests a second, tokens: some 800 requests under way in each replica
REPLICAS, SEATS, UNITS = 9, 1024, 8
ACCEPTED = (1.84, 2.51, 3.01, 3.36, 3.61)  # V4-Pro-0813 with DSpark, InferenceX golden_al_distribution
SHARE = 0.01
LOSSES = Losses(compute=0.4, memory=0.7, layer_seconds=1e-4, step_seconds=1e-3, source="made up")


def run(report: BenchReport) -> None:
    quick = report.options.quick
    seconds = 30.0 if quick else HOUR
    times = roofline()
    step = times.verify_seconds(800, 4800, INPUT + OUTPUT // 2) + times.draft_seconds(800, INPUT + OUTPUT // 2)
    report.ceiling("steps of all replicas in that time, thousands", REPLICAS * seconds / step / 1e3)
    began = time.perf_counter()
    workload = generate(FixedSize(INPUT, OUTPUT), rate=RATE, seed=0, seconds=seconds)
    made, began = time.perf_counter() - began, time.perf_counter()
    result = simulate_fast(system(times), workload)
    took = time.perf_counter() - began
    report.table("an hour of 72 GPUs", [_row(result, seconds, made, took)])
    report.table("fast against exact", [_compared(times, count) for count in ((100,) if quick else (100, 400))])
    hours = HOUR / seconds
    report.goal("an hour of 72 GPUs on one core", took * hours, MAX_SECONDS, "s", at_most=True)
    for row in report.figures["fast against exact"]:
        for what in ("throughput", "tpot"):
            off = abs(row[f"{what}_ratio"] - 1)
            report.goal(
                f"{what}, error of the fast against the exact simulator, {row['requests']} requests",
                off,
                SHARE,
                "",
                at_most=True,
            )


def roofline() -> Roofline:
    model = Model.of("deepseek-v4-flash")
    numbers = Numbers(Device.load("gb300-nvl72"))
    return Roofline(model, numbers, Placement(UNITS), LOSSES, DraftShape.dspark(model, len(ACCEPTED), 3))


def system(times: Roofline, replicas: int = REPLICAS, prefill: int = 2 * REPLICAS) -> FastSystem:
    return FastSystem(
        prefill=FastPrefillPool(replicas=prefill, times=times, chunk_tokens=16_384),
        decode=FastDecodePool(
            replicas=replicas,
            times=times,
            max_requests=SEATS,
            cache_tokens=10**8,
            link=Link(50e9, 1e-5),
            token_bytes=times.model.growing_bytes,
            acceptance=Rates.of_lengths(*ACCEPTED),
            fixed=len(ACCEPTED),
        ),
    )


def _row(result: SimulationResult, seconds: float, made: float, took: float) -> dict[str, float]:
    decode = [machine for machine in result.machines if machine.pool == "decode"]
    steps = sum(machine.steps for machine in decode)
    under_way = sum(one.ended - one.first for one in result.done) / seconds / REPLICAS
    return {
        "requests": len(result.served),
        "done": len(result.of(End.DONE)),
        "under way, a replica": under_way,
        "output tok/s a GPU": result.throughput / (REPLICAS * UNITS),
        "tok/s a user": 1 / result.mean_tpot,
        "steps": steps,
        "workload s": made,
        "simulated in s": took,
        "us a step": 1e6 * took / steps,
    }


def _compared(times: Roofline, count: int) -> dict[str, float]:
    """Compare both simulators on one replica of each pool, with the same requests and seed."""
    workload = generate(FixedSize(512, 256), rate=count / 2.0, seed=3, requests=count)
    config = {"max_requests": SEATS, "planner": "fixed", "fixed_drafts": len(ACCEPTED), "local_chunk_tokens": 0}
    layout = cache_layout(times.model, 64)
    pool = SimulatedPool(
        layout=layout,
        num_pages=dict.fromkeys(layout.groups, 100_000),
        prefill_times=times,
        step_times=times,
        link=Link(50e9, 1e-5),
        acceptance=Rates.of_lengths(*ACCEPTED),
    )
    service = Config.parse({"prefill": {"chunk_tokens": 16_384}, "decode": {"default": config}})
    began = time.perf_counter()
    exact = simulate(System(config=service, pools={"prefill": pool, "default": pool}), workload)
    middle = time.perf_counter()
    fast = simulate_fast(system(times, replicas=1, prefill=1), workload)
    ended = time.perf_counter()
    return {
        "requests": count,
        "exact_s": middle - began,
        "fast_s": ended - middle,
        "exact_tok_s": exact.throughput,
        "fast_tok_s": fast.throughput,
        "throughput_ratio": fast.throughput / exact.throughput,
        "tpot_ratio": fast.mean_tpot / exact.mean_tpot,
    }
