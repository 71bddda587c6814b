"""Measure a drafter in the engine, which records every step, with every draft verified."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from decode.record import StepRecord, read
from engine.errors import ConfigError
from engine.models import LoadedModel
from engine.types import FinishReason, Request, Sampling, StopRules
from local import Pair
from train.drafter.engines import DrafterSource, engine_pair
from train.drafter.prompts import Prompt
from train.drafter.rounds import AcceptanceFigures, DraftRound, GeneratedAnswer, figures, rounds

MAX_BLOCK = 64  # the longest block of a drafter


@dataclass(frozen=True)
class Setting:
    """The temperature of sampling, and the rule by which drafts are accepted.

    `seeded` gives a request the tokens that it would get without drafts, `rejection` is rejection sampling. Greedy
    requests get the same tokens by both.
    """

    temperature: float
    rule: Literal["rejection", "seeded"] = "rejection"

    @property
    def name(self) -> str:
        return "greedy" if not self.temperature else f"T={self.temperature:g} {self.rule}"

    def sampling(self, number: int) -> Sampling:
        """Return the sampling of request `number`."""
        return Sampling(temperature=self.temperature, seed=number + 1, seeded=self.rule == "seeded")


SETTINGS = {"greedy": Setting(0.0), "sampled": Setting(1.0), "seeded": Setting(1.0, "seeded")}


def settings_named(names: Sequence[str]) -> list[Setting]:
    """Return the settings of these names; all without a name. Raises ConfigError."""
    if unknown := set(names) - SETTINGS.keys():
        raise ConfigError(f"--setting: {', '.join(sorted(unknown))} is none of {', '.join(SETTINGS)}")
    return [SETTINGS[name] for name in names or SETTINGS]


@dataclass(frozen=True)
class DraftingCost:
    """Medians over steps of `requests` requests, in milliseconds; `plain_ms` is a step without speculation."""

    requests: int
    draft_ms: float
    verify_ms: float
    plain_ms: float

    def speedup(self, accepted_length: float) -> float:
        """Return the speed-up of decoding if a round gives `accepted_length` tokens and every draft is verified."""
        return accepted_length * self.plain_ms / (self.draft_ms + self.verify_ms)


@dataclass(frozen=True)
class DrafterResult:
    """The figures of one domain in one setting."""

    domain: str
    setting: str
    rounds: list[DraftRound]
    figures: AcceptanceFigures
    cost: DraftingCost

    def as_json(self) -> dict[str, object]:
        """Return all figures, flat."""
        speedup = self.cost.speedup(self.figures.accepted_length)
        own = {"domain": self.domain, "setting": self.setting, "speedup": speedup}
        return own | asdict(self.figures) | asdict(self.cost)


@dataclass(frozen=True)
class Evaluation:
    """The measurement of a drafter of `target`, loaded from `path`."""

    target: LoadedModel
    path: Path
    drafter: DrafterSource
    concurrency: int = 8  # requests that run at once
    max_tokens: int = 160  # of an answer
    records: Path | None = None  # a folder that keeps the recorded steps, for `sparkpool calibrate`
    ignore_eos: bool = False

    def measured(
        self,
        domains: Mapping[str, Sequence[Prompt]],
        settings: Sequence[Setting] = tuple(SETTINGS.values()),
        report: Callable[[str], None] = lambda _: None,
    ) -> Iterator[DrafterResult]:
        """Measure every domain in every setting. Raises ValueError if answers are too short for a block."""
        if self.records:
            self.records.mkdir(parents=True, exist_ok=True)
        for domain, prompts in domains.items():
            for setting in settings:
                yield self._measured(domain, list(prompts), setting)
                report(f"{domain}, {setting.name}")

    def _measured(self, domain: str, prompts: list[Prompt], setting: Setting) -> DrafterResult:
        found, drafting = self._run(prompts, setting, self.drafter)
        _, plain = self._run(prompts[: self.concurrency], setting, None)
        cost = DraftingCost(
            requests=self.concurrency,
            draft_ms=1e3 * median(step.draft_seconds for step in drafting),
            verify_ms=1e3 * median(step.verify_seconds for step in drafting),
            plain_ms=1e3 * median(step.verify_seconds for step in plain),
        )
        return DrafterResult(domain, setting.name, found, figures(found), cost)

    def _run(
        self, prompts: list[Prompt], setting: Setting, drafter: DrafterSource | None
    ) -> tuple[list[DraftRound], list[StepRecord]]:
        """Return all rounds, and the steps in which as many requests ran as may (all steps if there were none)."""
        stop = StopRules(max_tokens=self.max_tokens, ignore_eos=self.ignore_eos)
        requests = [
            Request(id=f"{i}", prompt=prompt, sampling=setting.sampling(i), stop=stop)
            for i, prompt in enumerate(prompts)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            pair = self._pair(drafter, Path(scratch), max(map(len, prompts)))
            tokens = pair.generate(requests)
            pair.decoder.close()
            (file,) = Path(scratch).glob("*.jsonl")
            header, recorded = read(file)
            steps = list(recorded)
            if drafter and self.records:
                shutil.copy(file, self.records)
        answers = {r.id: GeneratedAnswer(len(r.prompt), tokens[r.id], self._ended(pair, r.id)) for r in requests}
        full = [step for step in steps if len(step.requests) == min(self.concurrency, len(prompts))]
        return rounds(steps, answers, header.block_length), full or steps

    def _ended(self, pair: Pair, name: str) -> bool:
        last = pair.chunks[name][-1]
        return last.finish is FinishReason.STOP and last.tokens[-1] in self.target.eos_token_ids

    def _pair(self, drafter: DrafterSource | None, record: Path | None, prompt_tokens: int) -> Pair:
        max_tokens = prompt_tokens + self.max_tokens + MAX_BLOCK
        decode = {"planner": "fixed", "fixed_drafts": MAX_BLOCK if drafter else 0, "record": record, "warm_up": False}
        return engine_pair(self.target, self.path, self.concurrency, max_tokens, drafter, **decode)


def write_json(results: Sequence[DrafterResult], file: Path) -> None:
    """Write all figures as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
