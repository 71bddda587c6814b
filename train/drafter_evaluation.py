"""Measures a drafter where it works: in the engine, which records every step, with every draft verified."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from decode.record import StepRecord, read
from engine.config import SHIPPED_MODEL, Config
from engine.errors import ConfigError
from engine.models import LoadedModel, load_model
from engine.types import FinishReason, Request, Sampling, StopRules
from local import Builder, Pair
from train.prompts import Prompt, corpus_prompts, file_prompts
from train.rounds import Answer, Figures, Round, figures, rounds

Rule = Literal["rejection", "seeded"]
Drafter = Path | Literal["mtp"]


@dataclass(frozen=True)
class Setting:
    """How tokens are drawn, and by which rule drafts are accepted: a request with a seed of its own gets the tokens
    that it would get without drafts, others are served by rejection sampling. Greedy requests know no difference."""

    temperature: float
    rule: Rule = "rejection"

    @property
    def name(self) -> str:
        return "greedy" if not self.temperature else f"T={self.temperature:g} {self.rule}"

    def sampling(self, number: int) -> Sampling:
        """That of request `number`."""
        return Sampling(temperature=self.temperature, seed=number + 1, seeded=self.rule == "seeded")


SETTINGS = {"greedy": Setting(0.0), "sampled": Setting(1.0), "seeded": Setting(1.0, "seeded")}


@dataclass(frozen=True)
class Cost:
    """Medians over steps of `requests` requests, in milliseconds; `plain_ms` is a step without speculation."""

    requests: int
    draft_ms: float
    verify_ms: float
    plain_ms: float

    def speedup(self, accepted_length: float) -> float:
        """Of decoding, when a round gives so many tokens and every draft is verified."""
        return accepted_length * self.plain_ms / (self.draft_ms + self.verify_ms)


@dataclass(frozen=True)
class Result:
    """Of one domain in one setting."""

    domain: str
    setting: str
    rounds: list[Round]
    figures: Figures
    cost: Cost

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        speedup = self.cost.speedup(self.figures.accepted_length)
        return {"domain": self.domain, "setting": self.setting, **asdict(self.figures), **asdict(self.cost)} | {
            "speedup": speedup
        }


@dataclass(frozen=True)
class Evaluation:
    """A drafter before its target, `concurrency` requests at a time, `max_tokens` of answer each."""

    target: LoadedModel
    path: Path
    drafter: Drafter
    concurrency: int = 8
    max_tokens: int = 160
    records: Path | None = None  # keep what is recorded here, for `sparkpool calibrate`
    ignore_eos: bool = False

    def measured(
        self,
        domains: Mapping[str, Sequence[Prompt]],
        settings: Sequence[Setting] = tuple(SETTINGS.values()),
        report: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Result]:
        """One domain and setting after the other."""
        for domain, prompts in domains.items():
            for setting in settings:
                yield self._measured(domain, list(prompts), setting)
                report(f"{domain}, {setting.name}")

    def _measured(self, domain: str, prompts: list[Prompt], setting: Setting) -> Result:
        found, costs = self._run(prompts, setting, self.drafter)
        _, plain = self._run(prompts[: self.concurrency], setting, None)
        cost = Cost(
            requests=self.concurrency,
            draft_ms=1e3 * median(step.draft_seconds for step in costs),
            verify_ms=1e3 * median(step.verify_seconds for step in costs),
            plain_ms=1e3 * median(step.verify_seconds for step in plain),
        )
        return Result(domain, setting.name, found, figures(found), cost)

    def _run(
        self, prompts: list[Prompt], setting: Setting, drafter: Drafter | None
    ) -> tuple[list[Round], list[StepRecord]]:
        """All rounds, and the steps in which as many requests ran as may."""
        stop = StopRules(max_tokens=self.max_tokens, ignore_eos=self.ignore_eos)
        requests = [
            Request(id=f"{i}", prompt=prompt, sampling=setting.sampling(i), stop=stop)
            for i, prompt in enumerate(prompts)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            pair = self._pair(drafter, Path(scratch), max(map(len, prompts)))
            said = pair.generate(requests)
            pair.decoder.close()
            (file,) = Path(scratch).glob("*.jsonl")
            header, recorded = read(file)
            steps = list(recorded)
            if drafter and self.records:
                shutil.copy(file, self.records)
        answers = {r.id: Answer(len(r.prompt), said[r.id], self._ended(pair, r.id)) for r in requests}
        full = [step for step in steps if len(step.requests) == min(self.concurrency, len(prompts))]
        return rounds(steps, answers, header.block_length), full or steps

    def _ended(self, pair: Pair, name: str) -> bool:
        last = pair.chunks[name][-1]
        return last.finish is FinishReason.STOP and last.tokens[-1] in self.target.eos_token_ids

    def _pair(self, drafter: Drafter | None, record: Path | None, prompt_tokens: int) -> Pair:
        model = {"path": self.path, "drafter": drafter, "dtype": self.target.fingerprint["dtype"]}
        room = {"device": str(self.target.device), "max_requests": self.concurrency, "prefix_caching": False}
        decode = {"planner": "fixed", "fixed_drafts": 64 if drafter else 0, "record": record, "warm_up": False}
        config = Config.parse({"model": model, "prefill": room, "decode": {"default": room | decode}})
        layout = Builder(config, config.prefill, self.target).layout
        pages = (self.concurrency + 1) * (2 + -(-(prompt_tokens + self.max_tokens + 64) // layout.page_tokens))
        room["cache_bytes"] = pages * sum(group.page_bytes for group in layout.groups.values())
        config = Config.parse({"model": model, "prefill": room, "decode": {"default": room | decode}})
        return Pair(config, builder=Builder(config, config.prefill, self.target))


@dataclass(frozen=True)
class Asked:
    """What `sparkpool eval` was asked for: its options, by their names."""

    drafter: str
    target: Path | None
    prompts: Path | None
    requests: int
    skip: int
    prompt_tokens: int
    max_tokens: int
    setting: list[str]
    concurrency: int
    dtype: str
    device: str
    threads: int
    json_file: Path | None
    plots: Path | None
    records: Path | None

    def results(self, report: Callable[[str], None]) -> list[Result]:
        """Raises ConfigError, and ValueError if answers are too short for a block."""
        unknown = set(self.setting) - SETTINGS.keys()
        if unknown:
            raise ConfigError(f"--setting: {', '.join(sorted(unknown))} is none of {', '.join(SETTINGS)}")
        settings = [SETTINGS[name] for name in self.setting] or list(SETTINGS.values())
        if self.records:
            self.records.mkdir(parents=True, exist_ok=True)
        path = self.target or SHIPPED_MODEL
        if self.prompts is not None:
            domains = file_prompts(self.prompts, path, self.requests, self.skip)
        else:
            domains = corpus_prompts(path, self.requests, self.prompt_tokens, self.skip)
        model = load_model(path, getattr(torch, self.dtype), torch.device(self.device))
        source: Drafter = "mtp" if self.drafter == "mtp" else Path(self.drafter)
        evaluation = Evaluation(model, path, source, self.concurrency, self.max_tokens, self.records)
        return list(evaluation.measured(domains, settings, report))


def keep(results: Sequence[Result], file: Path) -> None:
    """All figures as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([result.plain() for result in results], indent=1) + "\n")
