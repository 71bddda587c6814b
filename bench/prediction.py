"""Compare the simulator's predictions of this machine's own cluster with measurements.

A cluster of one replica a pool answers held-out Python prompts, so many under way at once, without drafts, with MTP-1
and with DSpark (three drafts of each request), and from an emulated Groq 3 LPX. Each is profiled in place first:

    step times       of the engine alone, as its planner would measure them
    acceptance       by place, from a run at PROFILED concurrencies
    contention       on this machine client, gateway and both engines share the cores: a step of n requests takes so
                     many seconds more than alone, and a message so many while n are under way. At PROFILED n it is
                     what makes the simulator agree with those runs; straight lines between and beyond. (Emulated: the
                     messages alone, its steps are modelled.)

Then the simulator predicts PREDICTED concurrencies and other prompts, which it never saw. The engines' own schedules
run in it (compare/simulator/simulate.py). Three runs each; medians, and by how much the runs differ among themselves.
"""

import json
import math
import random
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from bench.shape import BenchReport
from bench.speculation import FIXED, held_out_prompts
from cluster.client import Client
from cluster.loadgen.run import BenchOptions
from cluster.loadgen.run import run as run_bench
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.app import running
from cluster.serving.front import free_ports
from cluster.serving.proxy import APPLICATION
from compare.simulator.acceptance import Rates
from compare.simulator.outcome import SimulationResult
from compare.simulator.replica import SimulatedPool
from compare.simulator.simulate import simulate
from compare.simulator.system import System
from compare.simulator.workload import Arrival, Workload
from engine.config import SHIPPED_DRAFTER, Config
from engine.pages import CacheLayout
from engine.steptime import StepTimes
from hardware.link import Link
from local.build import Builder, set_threads
from local.emulate import Emulation

PROFILED, PREDICTED, RUNS = (1, 4, 16, 64), (2, 8, 32), 3
PROMPT, OUTPUT, REQUESTS = 96, 64, 4  # tokens; requests for each that is under way, at least LEAST
LEAST, SEATS, ROUNDS = 32, 64, 6
SLOWEST = 16  # requests at once of the emulated device: for more, this machine is too slow to keep its pace
HOPS = 4  # between client and engines until the first token: to prefill, back, to decode, back
RATE_BOUND, TTFT_BOUND, LATE_BOUND = 0.10, 0.20, 0.30
ENGINE = {"threads": 1, "cache_bytes": "128MiB", "max_requests": SEATS, "prefix_caching": False}
LPX = {"model": "deepseek-v4-flash", "time_scale": 400.0, "assumed": {"bridge": 5.0}}
SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the model's section, the decode pool's
    "none": ({}, {"planner": "fixed", "fixed_drafts": 0}),
    "MTP-1": ({"drafter": "mtp"}, {"planner": "fixed", "fixed_drafts": 1}),
    f"DSpark-{FIXED}": ({"drafter": str(SHIPPED_DRAFTER)}, {"planner": "fixed", "fixed_drafts": FIXED}),
    "LPX, emulated": ({}, {"device": "groq-3-lpx", "emulation": LPX}),
}


@dataclass(frozen=True)
class ExtraSeconds:
    """Seconds that contention adds, by the number of requests: straight lines through some points."""

    at: dict[int, float]

    def of(self, requests: int) -> float:
        counts = sorted(self.at)
        place = min(max(bisect_right(counts, requests) - 1, 0), len(counts) - 2)
        a, b = counts[place : place + 2]
        return self.at[a] + (requests - a) * (self.at[b] - self.at[a]) / (b - a)

    def plus(self, more: dict[int, float], least: float = -math.inf) -> "ExtraSeconds":
        return ExtraSeconds({count: max(least, seconds + more[count]) for count, seconds in self.at.items()})

    def __str__(self) -> str:
        return ", ".join(f"{1e3 * self.at[count]:.2f} of {count}" for count in sorted(self.at))


@dataclass(frozen=True)
class ContendedStepTimes:
    """Step times of an engine that shares its machine."""

    times: StepTimes
    more: ExtraSeconds

    def draft_seconds(self, requests: int, context: int) -> float:
        return self.times.draft_seconds(requests, context)

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        alone = self.times.verify_seconds(requests, tokens, context)
        return max(alone / 2, alone + self.more.of(requests))


@dataclass(frozen=True)
class MeasuredPrefillTimes:
    """Prefill times of one prompt after the other, at the speed that the prefill replica has measured."""

    least: float
    each: float

    @classmethod
    def of(cls, queue: pb.PrefillQueue, chunk_tokens: int) -> "MeasuredPrefillTimes":
        """Return the line through the seconds of one token and those of a whole chunk."""
        whole = chunk_tokens / queue.tokens_per_second
        return cls(queue.min_step_seconds, (whole - queue.min_step_seconds) / (chunk_tokens - 1))

    def prefill_seconds(self, prompts: int, tokens: int, context: int) -> float:
        return self.least + self.each * (tokens - 1)


@dataclass
class ServedSystem:
    """A system that is served and simulated, with its contention in seconds, as explained above."""

    config: Config
    times: StepTimes
    layout: CacheLayout
    emulated: bool
    rates: tuple[float, ...] = ()
    prefilling: MeasuredPrefillTimes = field(default_factory=lambda: MeasuredPrefillTimes(1e-3, 1e-5))
    step: ExtraSeconds = field(default_factory=lambda: ExtraSeconds({1: 0.0, 2: 0.0}))
    message: ExtraSeconds = field(default_factory=lambda: ExtraSeconds({1: 0.0, 2: 0.0}))

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.2f}" for rate in self.rates) or "-"
        return f"ms more than alone: a step {self.step}; a message {self.message}. Acceptance by position: {rates}"

    def keeps_up(self, concurrency: int) -> bool:
        """Tell whether this machine can keep up with that many requests at once."""
        return not self.emulated or concurrency <= SLOWEST

    def predicted(self, concurrency: int, requests: int) -> SimulationResult:
        pool = SimulatedPool(
            layout=self.layout,
            num_pages=dict.fromkeys(self.layout.groups, 4000),
            prefill_times=self.prefilling,
            step_times=ContendedStepTimes(self.times, self.step),
            link=Link(2e9, 1e-3),
            acceptance=Rates.of(*self.rates) if self.rates else None,
        )
        pools, hop = {"prefill": pool, "default": pool}, max(0.0, self.message.of(concurrency))
        system = System(config=self.config, pools=pools, hop_seconds=hop, message_seconds=5e-4)
        arrivals = tuple(Arrival(at=0.0, input_tokens=PROMPT, output_tokens=OUTPUT) for _ in range(requests))
        return simulate(system, Workload(arrivals), concurrency=concurrency)

    def fit(self, measured: dict[int, dict[str, float]]) -> None:
        """Contention, so that predictions of `measured` come true: by the difference that is left, again and again."""
        self.step = self.message = ExtraSeconds(dict.fromkeys(measured, 0.0))
        tokens = 1 + sum(Rates.of(*self.rates).survival("")) if self.rates else 1.0
        for _ in range(ROUNDS):
            found = {n: _of(self.predicted(n, _requests(n))) for n in measured}
            if not self.emulated:
                self.step = self.step.plus({n: (measured[n]["tpot"] - found[n]["tpot"]) * tokens for n in measured})
            hops = {n: (measured[n]["ttft50"] - found[n]["ttft50"]) / HOPS for n in measured}
            self.message = self.message.plus(hops, least=0.0)


def run(report: BenchReport) -> None:
    quick = report.options.quick
    sides = dict(list(SIDES.items())[:1]) if quick else SIDES
    predicted, profiled = ((2,), (1, 4)) if quick else (PREDICTED, PROFILED)
    prompts = [prompt[:PROMPT] for prompt in held_out_prompts() if len(prompt) >= PROMPT]
    random.Random(0).shuffle(prompts)  # neighbours are of one file, and some are easier to draft than others
    half = len(prompts) // 2
    rows: list[dict[str, Any]] = []
    for name, (model, decode) in sides.items():
        with tempfile.TemporaryDirectory() as folder, served(model, decode) as (side, address):
            if not rows:
                report.ceiling("a step of 16, the engine alone, ms", 1e3 * side.times.verify_seconds(16, 16, PROMPT))
            profile(side, address, [n for n in profiled if side.keeps_up(n)], prompts[:half], Path(folder))
            for n in filter(side.keeps_up, predicted):
                runs = [measured(address, n, prompts[half:], Path(folder)) for _ in range(1 if quick else RUNS)]
                rows.append(_row(name, n, _of(side.predicted(n, _requests(n))), runs))
            report.note(f"{name}: {side}")
    report.table("predicted over measured", rows)
    bounds = {"throughput": RATE_BOUND, "tpot": RATE_BOUND, "ttft50": TTFT_BOUND, "ttft95": LATE_BOUND}
    for name in sides:
        for key, bound in bounds.items():
            worst = max(abs(row[f"{key}_ratio"] - 1) for row in rows if row["side"] == name)
            report.goal(f"{name}: {key} predicted, off at most", worst, bound, "", at_most=True)


@contextmanager
def served(model: dict[str, Any], decode: dict[str, Any]) -> Iterator[tuple[ServedSystem, str]]:
    """A cluster, and what can be known of it before a request has come."""
    grpc_port, http_port = free_ports(2)
    config = Config.parse(
        {
            "model": model,
            "prefill": ENGINE,
            "decode": {"default": {**ENGINE, "local_chunk_tokens": 0, **decode}},
            "gateway": {"grpc_port": grpc_port, "http_port": http_port},
        }
    )
    section = config.decode["default"]
    set_threads(section, config)
    builder = Builder(config, section)
    if section.emulated:
        times: StepTimes = Emulation.of(config, "default", builder.block_length).times
    else:
        times = builder.step_times(section)
    with running(config):
        yield ServedSystem(config, times, builder.layout, section.emulated), f"127.0.0.1:{grpc_port}"


def profile(
    side: ServedSystem, address: str, concurrencies: Sequence[int], prompts: Sequence[Sequence[int]], folder: Path
) -> None:
    """Runs of other prompts at other concurrencies than those that are predicted; the first to warm up."""
    measured(address, 1, prompts, folder)
    with Client(address, APPLICATION) as client:
        prefill = next(one for one in client.stats().replicas if one.identity.role == "prefill")
        found = {n: measured(address, n, prompts, folder) for n in concurrencies}
        decode = next(one for one in client.stats().replicas if one.identity.role == "decode")
    side.prefilling = MeasuredPrefillTimes.of(prefill.prefill_queue, side.config.prefill.chunk_tokens)
    survival = [a / v for a, v in zip(decode.counters.accepted_at, decode.counters.verified_at, strict=True) if v]
    before = [1.0, *survival]
    side.rates = tuple(min(1.0, s / b) if b else 0.0 for s, b in zip(survival, before, strict=False))
    side.fit(found)


def measured(address: str, concurrency: int, prompts: Sequence[Sequence[int]], folder: Path) -> dict[str, float]:
    """One run of `sparkpool bench`."""
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": list(prompt), "max_tokens": OUTPUT}) + "\n" for prompt in prompts]
    file.write_text("".join(lines))
    options = BenchOptions(
        address=address,
        application=APPLICATION,
        concurrency=concurrency,
        requests=_requests(concurrency),
        prompts=file,
        ignore_eos=True,
    )
    figures, interrupted = run_bench(options, Console(quiet=True))
    assert not interrupted and figures["completed"] == figures["requests"], figures["failed"]
    assert figures["emulated"] is None or figures["emulated"]["comparable"], figures["emulated"]
    latency = figures["latency"]
    return {
        "throughput": figures["output_tokens_per_second"],
        "tpot": latency["tpot"]["mean"],
        "ttft50": latency["ttft"]["p50"],
        "ttft95": latency["ttft"]["p95"],
    }


def _of(result: SimulationResult) -> dict[str, float]:
    return {
        "throughput": result.throughput,
        "tpot": result.mean_tpot,
        "ttft50": result.ttft(50),
        "ttft95": result.ttft(95),
    }


def _requests(concurrency: int) -> int:
    return max(LEAST, REQUESTS * concurrency)


def _row(side: str, concurrency: int, predicted: dict[str, float], runs: list[dict[str, float]]) -> dict[str, Any]:
    middle = {key: median(run[key] for run in runs) for key in predicted}
    spread = {key: (max(run[key] for run in runs) - min(run[key] for run in runs)) / middle[key] for key in predicted}
    row: dict[str, Any] = {"side": side, "concurrency": concurrency, "tok_s": middle["throughput"]}
    row |= {f"{key}_ms": 1e3 * middle[key] for key in ("tpot", "ttft50", "ttft95")}
    row |= {f"{key}_ratio": predicted[key] / middle[key] for key in predicted}
    return row | {f"{key}_spread": spread[key] for key in predicted}
