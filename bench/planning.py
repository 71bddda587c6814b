"""Measure the time of planning in a step of 64 requests, and of drafting in a round of one request.

Both come from the engine's own record of its steps (decode/record.py), with the shipped model and drafter. *Planning*
is all that the planner does: deciding whether to draft and how many drafts to verify. A profile shows the operators
that take the time of a round.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.shape import Report
from bench.speculation import CAUSAL, DSPARK, LAGGED, NONE, PROMPT_TOKENS, SpeculationSide, held_out_prompts
from decode.record import WRITE_SECONDS, StepRecord, read
from engine.config import SHIPPED_MODEL, Config
from engine.models import load_model

REQUESTS, OUTPUT_TOKENS, ROUNDS = 64, 48, 6
PLANNING_TARGET = 0.03
WARM_UP_TOKENS = 6
TOP_OPERATORS = 10


def run(report: Report) -> None:
    requests = 4 if report.options.quick else REQUESTS
    bench = PlanningBench(report)
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
    report.table("operators of a round (profiling slows it)", bench.operators(DSPARK))
    for row in rows:
        what = f"{row['planner']}, {row['steps']}: planning of a step of {requests}"
        report.goal(what, row["share"], PLANNING_TARGET, "", at_most=True)


class PlanningBench:
    """Engines that decode the same prompts and record their steps."""

    def __init__(self, report: Report) -> None:
        self._options = report.options
        self._output_tokens = 12 if report.options.quick else OUTPUT_TOKENS
        self._model = load_model(SHIPPED_MODEL, Config().model.torch_dtype, report.options.device)
        self._prompts = held_out_prompts()

    def steps(self, name: str, at_once: int) -> list[StepRecord]:
        """Return the steps of a fresh engine, after a warm-up, in which `at_once` requests took part."""
        with TemporaryDirectory() as folder:
            side = SpeculationSide(name, self._model, self._options, record=Path(folder))
            side(self._prompts[:at_once], WARM_UP_TOKENS)
            warm = side.pair.decoder.stats().counters.steps
            side(self._prompts[at_once : 2 * at_once], self._output_tokens)
            time.sleep(2 * WRITE_SECONDS)
            (file,) = Path(folder).glob("*.jsonl")
            return [step for step in [*read(file)[1]][warm:] if len(step.requests) == at_once]

    def operators(self, name: str) -> list[dict[str, Any]]:
        """Profile the decoding of one request; return the slowest operators."""
        side = SpeculationSide(name, self._model, self._options)
        side(self._prompts[:1], WARM_UP_TOKENS)
        before = side.pair.decoder.stats().counters.steps
        with profile(activities=[ProfilerActivity.CPU]) as found:
            side(self._prompts[1:2], self._output_tokens)
        rounds = side.pair.decoder.stats().counters.steps - before
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
    """Return a row for the steps that drafted, and one for those in which the planner decided against it.

    In the latter, all time before the verification is planning.
    """
    drafted = [step for step in steps if step.confidence and step.confidence[0]]
    undrafted = [step for step in steps if not (step.confidence and step.confidence[0])]
    for kind, some, planning in (
        ("that draft", drafted, _plan_seconds),
        ("that do not", undrafted, _before_verification),
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
