"""What planning costs in a step of 64 requests, and what drafting is of a round of one.

Both from the engine's own record of its steps (decode/record.py), with the shipped model and drafter. *Planning* is all
that the planner does: deciding whether to draft and how many to verify. *Drafting* comes with a profile of where the
time of a round goes.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.shape import BenchReport
from bench.speculation import CAUSAL, DSPARK, LAGGED, NONE, PROMPT_TOKENS, Side, held_out_prompts
from decode.record import WRITE_SECONDS, StepRecord, read
from engine.config import SHIPPED_MODEL, Config
from engine.models import load_model

REQUESTS, OUTPUT_TOKENS, ROUNDS = 64, 48, 6
PLANNING_TARGET = 0.03
WARM_UP_TOKENS = 6
TOP_OPERATORS = 10


def run(report: BenchReport) -> None:
    requests = 4 if report.options.quick else REQUESTS
    bench = Bench(report)
    report.ceiling(
        f"a step without speculation, {requests} at once, ms", 1e3 * _median(bench.steps(NONE, requests), _total)
    )
    rounds = range(1 if report.options.quick else ROUNDS)
    steps: dict[str, list[StepRecord]] = {CAUSAL: [], LAGGED: []}
    for _ in rounds:
        for name, found in steps.items():
            found += bench.steps(name, requests)
    rows = [row for name, found in steps.items() for row in _planning(name, found)]
    report.table(f"planning, {requests} at once", rows)
    report.table(f"a round of {DSPARK}, one request", [_round(bench.steps(DSPARK, 1))])
    report.table("where a round goes (profiled, which slows it)", bench.operators(DSPARK))
    for row in rows:
        what = f"{row['planner']}, {row['steps']}: planning of a step of {requests}"
        report.goal(what, row["share"], PLANNING_TARGET, "", at_most=True)


class Bench:
    """Engines that decode the same prompts, and what they recorded."""

    def __init__(self, report: BenchReport) -> None:
        self._options = report.options
        self._output_tokens = 12 if report.options.quick else OUTPUT_TOKENS
        self._model = load_model(SHIPPED_MODEL, Config().model.torch_dtype, report.options.device)
        self._prompts = held_out_prompts()

    def steps(self, name: str, at_once: int) -> list[StepRecord]:
        """The steps of a fresh engine in which so many requests took part; those of a first answer do not count."""
        with TemporaryDirectory() as folder:
            side = Side(name, self._model, self._options, record=Path(folder))
            side(self._prompts[:at_once], WARM_UP_TOKENS)
            warm = side.pair.decoder.stats().steps
            side(self._prompts[at_once : 2 * at_once], self._output_tokens)
            time.sleep(2 * WRITE_SECONDS)
            (file,) = Path(folder).glob("*.jsonl")
            return [step for step in [*read(file)[1]][warm:] if len(step.requests) == at_once]

    def operators(self, name: str) -> list[dict[str, Any]]:
        """Where the time of one request's decoding goes, operator by operator."""
        side = Side(name, self._model, self._options)
        side(self._prompts[:1], WARM_UP_TOKENS)
        before = side.pair.decoder.stats().steps
        with profile(activities=[ProfilerActivity.CPU]) as found:
            side(self._prompts[1:2], self._output_tokens)
        rounds = side.pair.decoder.stats().steps - before
        rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        return [
            {
                "operator": row.key,
                "ms_a_round": row.self_cpu_time_total / 1e3 / rounds,
                "calls_a_round": row.count / rounds,
                "share": row.self_cpu_time_total / total,
            }
            for row in rows[:TOP_OPERATORS]
        ]


def _planning(name: str, steps: list[StepRecord]) -> Iterator[dict[str, Any]]:
    """Steps that drafted, and those that the planner kept from it: there, all before the verification is its doing."""
    drafted = [step for step in steps if step.confidence and step.confidence[0]]
    kept = [step for step in steps if not (step.confidence and step.confidence[0])]
    for kind, some, planning in (
        ("that draft", drafted, _plan_seconds),
        ("that do not", kept, _before_verification),
    ):
        if some:
            yield {
                "planner": name,
                "steps": kind,
                "count": len(some),
                "planning_ms": 1e3 * _median(some, planning),
                "step_ms": 1e3 * _median(some, _total),
                "share": statistics.median(planning(step) / _total(step) for step in some),
            }


def _round(steps: list[StepRecord]) -> dict[str, Any]:
    return {
        "draft_ms": 1e3 * _median(steps, lambda step: step.draft_seconds),
        "verify_ms": 1e3 * _median(steps, lambda step: step.verify_seconds),
        "drafting_share": _median(steps, lambda step: step.draft_seconds / _total(step)),
        "context": PROMPT_TOKENS,
    }


def _plan_seconds(step: StepRecord) -> float:
    return step.plan_seconds


def _before_verification(step: StepRecord) -> float:
    return step.draft_seconds + step.plan_seconds


def _total(step: StepRecord) -> float:
    return step.draft_seconds + step.plan_seconds + step.verify_seconds


def _median(steps: list[StepRecord], of: Callable[[StepRecord], float]) -> float:
    return statistics.median(map(of, steps))
