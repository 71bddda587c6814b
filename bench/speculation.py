"""Decoding with and without drafters: output tokens per second against tokens per second of each user.

One decode engine, the shipped model, greedy continuations of Python files that no training has seen. Every side
decodes the same requests, already prefilled, from their first token to their last:

    none           no speculation
    MTP-1          the checkpoint's next-token layer, one draft in every step
    DSpark-N       the shipped drafter, N drafts of every request in every step
    DSpark causal  as many as Algorithm 1 finds worth it, by confidence and the step times measured at start
    DSpark lagged  as many as it would have found two steps ago, by the confidences of then

Beside what was measured stands what accepted lengths and profiled step times predict: a side says
R tau / (draft(R) + verify(R, R (1 + verified)) + besides) tokens per second; R requests in a step on average, tau
tokens and `verified` drafts of each, both times from the table that the planner uses, and besides what a step of the
side without speculation takes that is no part of it (commit, text, events). `drafting` is the share of steps that
drafted.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from bench.ceiling import MachineRates, ModelCost
from bench.chart import Curve, draw
from bench.console import TableRow
from bench.shape import BenchOptions, BenchReport, Samples
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
SIDES: dict[str, tuple[TableRow, TableRow]] = {  # the model's section, the decode pool's
    NONE: ({}, {}),
    MTP: ({"drafter": "mtp"}, {"planner": "fixed", "fixed_drafts": 1}),
    DSPARK: ({"drafter": SHIPPED_DRAFTER}, {"planner": "fixed", "fixed_drafts": FIXED}),
    CAUSAL: ({"drafter": SHIPPED_DRAFTER}, {"planner": "causal"}),
    LAGGED: ({"drafter": SHIPPED_DRAFTER}, {"planner": "lagged"}),
}
PLANNED = (CAUSAL, LAGGED)
PREDICTION_TARGET, WORST_TARGET = 0.10, 0.95


@dataclass
class Counts:
    """What some steps did. `rows` are the requests of all of them."""

    steps: int = 0
    rows: int = 0
    verified: int = 0
    accepted: int = 0

    def seconds(self, times: ProfiledTimes, context: int, drafting: bool) -> float:
        """How long they take, by the table."""
        if not self.steps:
            return 0.0
        requests, tokens = self.rows / self.steps, (self.rows + self.verified) / self.steps
        draft = times.draft_seconds(round(requests), context) if drafting else 0.0
        return self.steps * (draft + times.verify_seconds(round(requests), round(tokens), context))


@dataclass
class Tally:
    """Steps that drafted, and steps that did not."""

    drafting: Counts
    plain: Counts
    overhead_seconds: float = 0.0  # of all of them: what is neither drafting, planning nor verification

    @classmethod
    def empty(cls) -> "Tally":
        return cls(Counts(), Counts())

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
        """Tokens per step and request."""
        return 1 + (self.drafting.accepted + self.plain.accepted) / self.rows

    @property
    def steps(self) -> int:
        return self.drafting.steps + self.plain.steps

    def predicted_seconds(self, times: ProfiledTimes, context: int, besides: float) -> float:
        """Per token of output; `besides`: what a step takes beside all that the table knows."""
        seconds = self.drafting.seconds(times, context, True) + self.plain.seconds(times, context, False)
        return (seconds + self.steps * besides) / (self.rows * self.tau)


class Side:
    """A pair of engines over the shared weights of the target."""

    def __init__(self, name: str, model: LoadedModel, options: BenchOptions, record: Path | None = None) -> None:
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
        self.tally = Tally.empty()
        self.answers: list[list[int]] = []

    def __call__(self, prompts: list[Prompt], output_tokens: int) -> float:
        """Prefill everybody, then decode everybody; the seconds of the latter."""
        pair = self.pair
        stop = StopRules(max_tokens=output_tokens, ignore_eos=True)
        asked = [Request(id=str(i), prompt=p, sampling=Sampling(), stop=stop) for i, p in enumerate(prompts)]
        pair.chunks.clear()
        pair.begin(asked)
        before, started = pair.decoder.stats(), time.perf_counter()
        started_with = {part: getattr(before, f"{part}_seconds") for part in ("draft", "plan", "verify")}
        while before.running:
            pair.take(pair.decoder.step())
            after = pair.decoder.stats()
            gained = (getattr(after, name) - getattr(before, name) for name in ("drafted", "verified", "accepted"))
            self.tally.count(before.running, *gained)
            before = after
        seconds = time.perf_counter() - started
        inside = sum(getattr(after, f"{part}_seconds") - started_with[part] for part in started_with)
        self.tally.overhead_seconds += seconds - inside
        self.answers = [[t for chunk in pair.chunks[request.id] for t in chunk.tokens] for request in asked]
        return seconds


def run(report: BenchReport) -> None:
    options = report.options
    rates = MachineRates.measured(options)
    report.ceiling("memory read, GB/s", rates.read_bytes_per_second / 1e9)
    model = load_model(SHIPPED_MODEL, Config().model.torch_dtype, options.device)
    concurrencies = (1, 4) if options.quick else CONCURRENCIES
    output_tokens, rounds = (12, 2) if options.quick else (OUTPUT_TOKENS, 1 + ROUNDS)
    cost = ModelCost.of(model)
    for at_once in concurrencies:
        least = cost.answer_seconds(rates, at_once, PROMPT_TOKENS, output_tokens)
        report.ceiling(f"no speculation, {at_once} at once, tok/s", at_once * output_tokens / least)
    prompts = held_out_prompts()
    sides = {name: Side(name, model, options) for name in SIDES}
    rows: list[TableRow] = []
    for at_once in concurrencies:
        rows += _measured(report, sides, prompts, at_once, output_tokens, rounds)
    report.table("decoding", rows)
    _goals(report, rows)
    curves = [Curve(name, [(row["user_tok_s"], row["tok_s"]) for row in rows if row["side"] == name]) for name in sides]
    labels = [str(at_once) for at_once in concurrencies]
    draw(
        options.out / "speculation.png",
        title="Decoding the shipped model; points: requests at once",
        axes=("tokens per second of each user", "output tokens per second"),
        curves=curves,
        labels=labels,
    )


def held_out_prompts() -> list[Prompt]:
    """Places in files that neither the model nor its drafter was trained on."""
    tokens = packed(AutoTokenizer.from_pretrained(SHIPPED_MODEL), Corpus.collect().held_out)
    starts = range(0, len(tokens) - PROMPT_TOKENS, PROMPT_TOKENS)
    return [tuple(int(t) for t in tokens[start : start + PROMPT_TOKENS]) for start in starts]


def _measured(
    report: BenchReport,
    sides: dict[str, Side],
    prompts: list[Prompt],
    at_once: int,
    output_tokens: int,
    num_rounds: int,
) -> list[TableRow]:
    """A row for each side."""
    rng = random.Random(at_once)
    rounds = [rng.sample(prompts, at_once) for _ in range(num_rounds)]
    differing = 0
    for side in sides.values():
        side.tally = Tally.empty()

    def timed(name: str):  # type: ignore[no-untyped-def]
        def run(prompts: list[Prompt]) -> float:
            nonlocal differing
            seconds = sides[name](prompts, output_tokens)
            plain = said.setdefault(id(prompts), sides[name].answers)
            differing += sum(a != b for a, b in zip(plain, sides[name].answers, strict=True))
            return seconds

        return run

    said: dict[int, list[list[int]]] = {}
    samples = report.alternately(f"{at_once} at once", {name: timed(name) for name in sides}, rounds)
    answers = at_once * num_rounds * len(sides)
    assert differing <= max(1, 0.01 * answers), f"{differing} of {answers} answers differ: more than ties explain"
    if differing:
        report.note(f"{at_once} at once: {differing} of {answers} answers differ from the first side's (ties)")
    tokens = at_once * (output_tokens - 1)  # the first came from prefill
    besides = sides[NONE].tally.overhead_seconds / sides[NONE].tally.steps
    return [_row(name, side, samples, at_once, tokens, besides) for name, side in sides.items()]


def _row(name: str, side: Side, samples: Samples, at_once: int, tokens: int, besides: float) -> TableRow:
    tally, seconds = side.tally, samples.median(name)
    predicted = tally.predicted_seconds(side.times, PROMPT_TOKENS + OUTPUT_TOKENS // 2, besides)
    return {
        "at_once": at_once,
        "side": name,
        "tok_s": tokens / seconds,
        "user_tok_s": tokens / seconds / at_once,
        "over_none": samples.speed_up(name, NONE),
        "over_mtp": samples.speed_up(name, MTP),
        "tau": tally.tau,
        "verified": (tally.drafting.verified + tally.plain.verified) / tally.rows,
        "drafting": tally.drafting.rows / tally.rows,
        "predicted_tok_s": 1 / predicted,
        "worst_over_best": min(samples.speed_up(name, other) for other in (NONE, MTP, DSPARK)),
    }


def _goals(report: BenchReport, rows: list[TableRow]) -> None:
    by_place = {(row["at_once"], row["side"]): row for row in rows}
    for (at_once, side), row in by_place.items():
        if side not in PLANNED:
            continue
        mtp = by_place[at_once, MTP]
        predicted = row["predicted_tok_s"] / mtp["predicted_tok_s"]
        error = abs(predicted / row["over_mtp"] - 1)
        what = f"{side}, {at_once} at once"
        report.goal(f"{what}, predicted speed-up over MTP-1 off by", error, PREDICTION_TARGET, "", at_most=True)
        report.goal(f"{what}, over the best of the others", row["worst_over_best"], WORST_TARGET, "x")
