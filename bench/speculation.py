"""Decode with and without drafters: output tokens per second against tokens per second of each user.

One decode engine, the shipped model, greedy continuations of Python files held out from all training. Every side
decodes the same requests, already prefilled, from their first token to their last:

    none           no speculation
    MTP-1          the checkpoint's next-token layer, one draft in every step
    DSpark-N       the shipped drafter, N drafts of every request in every step
    DSpark causal  as many as Algorithm 1 selects, by confidence and the step times measured at start
    DSpark lagged  as many as it would have selected two steps ago, by the confidences of that step

Each measurement is compared with a prediction from accepted lengths and profiled step times:
R tau / (draft(R) + verify(R, R (1 + verified)) + overhead) tokens per second, for R requests in a step on average, tau
tokens and `verified` drafts of each, both times from the planner's table, and the overhead of a step without
speculation (commit, text, events). `drafting` is the share of steps that drafted.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.ceiling import ModelCost, Rates
from bench.chart import draw
from bench.shape import Options, Report, Samples
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.models import LoadedModel, load_model
from engine.steptime import ProfiledTimes
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair
from local.build import set_threads
from train.batches import packed
from train.corpus import Corpus

Prompt = tuple[int, ...]
PROMPT_TOKENS, OUTPUT_TOKENS, ROUNDS = 128, 96, 5
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
FIXED = 3
NONE, MTP, DSPARK, CAUSAL, LAGGED = "none", "MTP-1", f"DSpark-{FIXED}", "DSpark causal", "DSpark lagged"
SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the model's section, the decode pool's
    NONE: ({}, {}),
    MTP: ({"drafter": "mtp"}, {"planner": "fixed", "fixed_drafts": 1}),
    DSPARK: ({"drafter": SHIPPED_DRAFTER}, {"planner": "fixed", "fixed_drafts": FIXED}),
    CAUSAL: ({"drafter": SHIPPED_DRAFTER}, {"planner": "causal"}),
    LAGGED: ({"drafter": SHIPPED_DRAFTER}, {"planner": "lagged"}),
}
PLANNED = (CAUSAL, LAGGED)
PREDICTION_TARGET, WORST_TARGET = 0.10, 0.95


@dataclass
class StepCounts:
    """Totals of some steps. `rows` counts the requests of each."""

    steps: int = 0
    rows: int = 0
    verified: int = 0
    accepted: int = 0

    def seconds(self, times: ProfiledTimes, context: int, drafting: bool) -> float:
        """Return the duration of the steps that the table predicts."""
        if not self.steps:
            return 0.0
        requests, tokens = self.rows / self.steps, (self.rows + self.verified) / self.steps
        draft = times.draft_seconds(round(requests), context) if drafting else 0.0
        return self.steps * (draft + times.verify_seconds(round(requests), round(tokens), context))


@dataclass
class SpeculationTotals:
    """Totals of the steps that drafted, and of those that did not."""

    drafting: StepCounts
    plain: StepCounts
    overhead_seconds: float = 0.0  # of all steps: neither drafting, planning nor verification

    @classmethod
    def empty(cls) -> "SpeculationTotals":
        return cls(StepCounts(), StepCounts())

    def count(self, rows: int, drafted: int, verified: int, accepted: int) -> None:
        counts = self.drafting if drafted else self.plain
        counts.steps += 1
        counts.rows += rows
        counts.verified += verified
        counts.accepted += accepted

    @property
    def rows(self) -> int:
        return self.drafting.rows + self.plain.rows

    @property
    def tau(self) -> float:
        """The tokens per step and request."""
        return 1 + (self.drafting.accepted + self.plain.accepted) / self.rows

    @property
    def steps(self) -> int:
        return self.drafting.steps + self.plain.steps

    def predicted_seconds(self, times: ProfiledTimes, context: int, overhead: float) -> float:
        """Return the seconds per output token; `overhead` is the time of a step that the table does not cover."""
        seconds = self.drafting.seconds(times, context, True) + self.plain.seconds(times, context, False)
        return (seconds + self.steps * overhead) / (self.rows * self.tau)


class SpeculationSide:
    """A pair of engines with one way to speculate; all sides share the target's weights."""

    def __init__(self, name: str, model: LoadedModel, options: Options, record: Path | None = None) -> None:
        of_model, of_decode = SIDES[name]
        engine = {"device": str(options.device), "threads": options.threads, "cache_bytes": "256MiB"}
        engine |= {"prefix_caching": False, "max_requests": max(CONCURRENCIES)}
        prefill = {**engine, "lease_seconds": 3600.0}
        config = Config.parse(
            {"model": of_model, "prefill": prefill, "decode": {"default": engine | of_decode | {"record": record}}}
        )
        set_threads(config.prefill, config)
        builder = Builder(config, config.prefill, model)
        self.times = builder.step_times(config.decode["default"])
        self.pair = Pair(config, builder=builder)
        self.totals = SpeculationTotals.empty()
        self.answers: list[list[int]] = []

    def __call__(self, prompts: list[Prompt], output_tokens: int) -> float:
        """Prefill all requests, then decode them; return the seconds of the decoding."""
        pair = self.pair
        stop = StopRules(max_tokens=output_tokens, ignore_eos=True)
        asked = [Request(id=str(i), prompt=p, sampling=Sampling(), stop=stop) for i, p in enumerate(prompts)]
        pair.chunks.clear()
        pair.begin(asked)
        before, started = pair.decoder.stats(), time.perf_counter()
        started_with = {part: getattr(before.counters, f"{part}_seconds") for part in ("draft", "plan", "verify")}
        while before.running:
            pair.take(pair.decoder.step())
            after = pair.decoder.stats()
            drafts = ("drafted", "verified", "accepted")
            gained = (getattr(after.counters, name) - getattr(before.counters, name) for name in drafts)
            self.totals.count(before.running, *gained)
            before = after
        seconds = time.perf_counter() - started
        inside = sum(getattr(after.counters, f"{part}_seconds") - started_with[part] for part in started_with)
        self.totals.overhead_seconds += seconds - inside
        self.answers = [[t for chunk in pair.chunks[request.id] for t in chunk.tokens] for request in asked]
        return seconds


def run(report: Report) -> None:
    options = report.options
    rates = Rates.measured(options)
    report.ceiling("memory read, GB/s", rates.read_bytes_per_second / 1e9)
    model = load_model(SHIPPED_MODEL, Config().model.torch_dtype, options.device)
    concurrencies = (1, 4) if options.quick else CONCURRENCIES
    output_tokens, rounds = (12, 2) if options.quick else (OUTPUT_TOKENS, 1 + ROUNDS)
    cost = ModelCost.of(model)
    for at_once in concurrencies:
        least = cost.answer_seconds(rates, at_once, PROMPT_TOKENS, output_tokens)
        report.ceiling(f"no speculation, {at_once} at once, tok/s", at_once * output_tokens / least)
    prompts = held_out_prompts()
    sides = {name: SpeculationSide(name, model, options) for name in SIDES}
    rows: list[dict[str, Any]] = []
    for at_once in concurrencies:
        rows += _measured(report, sides, prompts, at_once, output_tokens, rounds)
    report.table("decoding", rows)
    _goals(report, rows)
    curves = {name: [(row["user_tok_s"], row["tok_s"]) for row in rows if row["side"] == name] for name in sides}
    labels = [str(at_once) for at_once in concurrencies]
    draw(
        options.out / "speculation.png",
        title="Decoding the shipped model; points: requests at once",
        axes=("tokens per second of each user", "output tokens per second"),
        curves=curves,
        labels=labels,
    )


def held_out_prompts() -> list[Prompt]:
    """Return prompts from files that neither the model nor its drafter was trained on."""
    tokens = packed(AutoTokenizer.from_pretrained(SHIPPED_MODEL), Corpus.collect().held_out)
    starts = range(0, len(tokens) - PROMPT_TOKENS, PROMPT_TOKENS)
    return [tuple(int(t) for t in tokens[start : start + PROMPT_TOKENS]) for start in starts]


def _measured(
    report: Report,
    sides: dict[str, SpeculationSide],
    prompts: list[Prompt],
    at_once: int,
    output_tokens: int,
    num_rounds: int,
) -> list[dict[str, Any]]:
    """Return a row of results for each side."""
    rng = random.Random(at_once)
    rounds = [rng.sample(prompts, at_once) for _ in range(num_rounds)]
    differing = 0
    for side in sides.values():
        side.totals = SpeculationTotals.empty()

    def timed(name: str) -> Callable[[list[Prompt]], float]:
        def run(prompts: list[Prompt]) -> float:
            nonlocal differing
            seconds = sides[name](prompts, output_tokens)
            plain = first_answers.setdefault(id(prompts), sides[name].answers)
            differing += sum(a != b for a, b in zip(plain, sides[name].answers, strict=True))
            return seconds

        return run

    first_answers: dict[int, list[list[int]]] = {}
    samples = report.alternately(f"{at_once} at once", {name: timed(name) for name in sides}, rounds)
    answers = at_once * num_rounds * len(sides)
    assert differing <= max(1, 0.01 * answers), f"{differing} of {answers} answers differ: more than ties explain"
    if differing:
        report.note(f"{at_once} at once: {differing} of {answers} answers differ from the first side's (ties)")
    tokens = at_once * (output_tokens - 1)  # the first came from prefill
    overhead = sides[NONE].totals.overhead_seconds / sides[NONE].totals.steps
    return [_row(name, side, samples, at_once, tokens, overhead) for name, side in sides.items()]


def _row(
    name: str, side: SpeculationSide, samples: Samples, at_once: int, tokens: int, overhead: float
) -> dict[str, Any]:
    totals, seconds = side.totals, samples.median(name)
    predicted = totals.predicted_seconds(side.times, PROMPT_TOKENS + OUTPUT_TOKENS // 2, overhead)
    return {
        "at_once": at_once,
        "side": name,
        "tok_s": tokens / seconds,
        "user_tok_s": tokens / seconds / at_once,
        "over_none": samples.speed_up(name, NONE),
        "over_mtp": samples.speed_up(name, MTP),
        "tau": totals.tau,
        "verified": (totals.drafting.verified + totals.plain.verified) / totals.rows,
        "drafting": totals.drafting.rows / totals.rows,
        "predicted_tok_s": 1 / predicted,
        "worst_over_best": min(samples.speed_up(name, other) for other in (NONE, MTP, DSPARK)),
    }


def _goals(report: Report, rows: list[dict[str, Any]]) -> None:
    by_key = {(row["at_once"], row["side"]): row for row in rows}
    for (at_once, side), row in by_key.items():
        if side not in PLANNED:
            continue
        mtp = by_key[at_once, MTP]
        predicted = row["predicted_tok_s"] / mtp["predicted_tok_s"]
        error = abs(predicted / row["over_mtp"] - 1)
        what = f"{side}, {at_once} at once"
        report.goal(f"{what}, predicted speed-up over MTP-1 off by", error, PREDICTION_TARGET, "", at_most=True)
        report.goal(f"{what}, over the best of the others", row["worst_over_best"], WORST_TARGET, "x")
