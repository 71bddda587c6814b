"""One run of `sparkpool train`: text, features, training, drafter. Each part goes on where an earlier run stopped.

With several workers the first one writes, and the others wait for it.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from threading import Event
from typing import Any, Protocol

import torch

from engine.errors import ConfigError
from engine.files import atomic_write
from train.drafter_config import TrainConfig
from train.drafter_shape import drafter_config, export_drafter
from train.drafter_trainer import DrafterTrainer
from train.features import Cached, Features, Online
from train.machine import keep_freed_memory, machine
from train.sequences import Sequences, Writer
from train.target import Target
from train.workers import ALONE, Workers

CHECKPOINT, METRICS, FACTS = "checkpoint.pt", "metrics.jsonl", "training.json"
LAST_STEPS = 100


class Report(Protocol):
    """Tells the user how far it is."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Tells nothing."""


@dataclass(frozen=True)
class DrafterRun:
    """What a file asks for, by one of `workers`."""

    config: TrainConfig
    workers: Workers = ALONE
    report: Report = silent
    stop: Event = field(default_factory=Event)

    def run(self) -> DrafterTrainer:
        """Until all steps are done, or `stop` is set: then what is done is kept for a later run to go on from.

        Raises ConfigError, and keeps it too.
        """
        trainer = self.trainer()
        total = trainer.section.steps
        for figures in trainer.train():
            self._log(figures)
            stopped = self.stop.is_set() and self.workers.count == 1
            if stopped or trainer.steps % trainer.section.checkpoint_steps == 0 or trainer.steps == total:
                self._save(trainer)
            note = f"loss {figures['loss']:.3f}, accepted {figures['acceptance']:.3f}"
            self.report("train", trainer.steps, total, note)
            if stopped and trainer.steps < total:
                return trainer
        if self.workers.is_first:
            copies = trainer.target if self.config.drafter.copies else None
            export_drafter(trainer.model, self._raw, self.config.out, copies)
            with atomic_write(self.config.out / FACTS) as partial:
                partial.write_text(json.dumps(self._facts(trainer), indent=1) + "\n")
        self.workers.wait()
        return trainer

    def trainer(self) -> DrafterTrainer:
        """Ready for its next step."""
        config, raw = self.config, self._raw
        config.work.mkdir(parents=True, exist_ok=True)
        device = torch.device(config.training.device)
        target = Target.load(config.target.path, config.drafter.target_layer_ids, config.target.torch_dtype, device)
        text = self._text(target)
        trainer = DrafterTrainer(config.training, raw, target, text, self._features(target, text), self.workers)
        self._restore(trainer)
        return trainer

    @property
    def _raw(self) -> dict[str, Any]:
        return drafter_config(self.config.target.path, self.config.drafter, self.config.training.anchors)

    def _text(self, target: Target) -> Sequences:
        config = self.config
        writer = Writer(target.model, config.target.path, config.text, config.text_folder / "text")
        with self._first_goes_first():
            text = writer.written(lambda done, total: self.report("text", done, total))
        lacking = text.end_N - text.first_N < 2
        if lacking.all():
            raise ConfigError(f"{config.text_folder}: the target said nothing after any of {len(text)} prompts")
        return text.only(~lacking)

    def _features(self, target: Target, text: Sequences) -> Features:
        config = self.config
        if not config.features.cache:
            return Online(target, text)
        dtype: torch.dtype = getattr(torch, config.features.dtype)
        cached = Cached(target, text, config.text_folder / "features", dtype)
        with self._first_goes_first():
            cached.prepare(lambda done, total: self.report("features", done, total, f"{cached.num_bytes / 1e9:.1f} GB"))
        return cached

    @contextmanager
    def _first_goes_first(self) -> Iterator[None]:
        if not self.workers.is_first:
            self.workers.wait()
        yield
        if self.workers.is_first:
            self.workers.wait()

    def _identity(self, trainer: DrafterTrainer) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        training = self.config.training.model_dump(mode="json", exclude={"checkpoint_steps", "device"})
        return {
            "target": trainer.target.model.fingerprint,
            "text": {"digest": trainer.text.digest},
            "drafter": self._raw,
            "training": training,
            "features": self.config.features.model_dump(),
        }

    def _facts(self, trainer: DrafterTrainer) -> dict[str, Any]:
        """How a drafter came to be: it stays beside the weights."""
        config, last = self.config, metrics(self.config.work)[-LAST_STEPS:]
        names = ("loss", "cross_entropy", "l1", "confidence", "acceptance")
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "workers": self.workers.count,
            "versions": {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
            "target": trainer.target.model.fingerprint,
            "text": config.text.model_dump(mode="json", exclude={"prompts"}) | {"digest": trainer.text.digest},
            "text_tokens": trainer.text.num_tokens,
            "features": config.features.model_dump(),
            "training": config.training.model_dump(mode="json"),
            "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "steps": trainer.steps,
            "seconds": round(trainer.seconds),
            "tokens": trainer.tokens,
            f"mean_of_last_{len(last)}_steps": {n: round(mean(line[n] for line in last), 4) for n in names},
        }

    def _save(self, trainer: DrafterTrainer) -> None:
        if self.workers.is_first:
            with atomic_write(self.config.work / CHECKPOINT) as partial:
                torch.save({"identity": self._identity(trainer), **trainer.state()}, partial)
        self.workers.wait()

    def _restore(self, trainer: DrafterTrainer) -> None:
        file = self.config.work / CHECKPOINT
        if file.exists():
            try:
                state = torch.load(file, map_location=self.config.training.device, weights_only=True)
                found = state.pop("identity")
            except Exception as error:
                raise ConfigError(f"{file}: cannot be read ({error}); delete it to begin again") from error
            for part, mine in self._identity(trainer).items():
                for name in sorted(mine.keys() | found[part].keys()):
                    theirs, own = found[part].get(name), mine.get(name)
                    if theirs != own:
                        raise ConfigError(
                            f"{file}: {part}.{name} was {theirs!r} when that run began, now it is {own!r}; name "
                            "another `work` folder, or delete the file to begin again"
                        )
            trainer.restore(state)
        self._forget_later_metrics(trainer.steps)

    def _forget_later_metrics(self, steps: int) -> None:
        """A run that was killed logged steps behind its last checkpoint; they are made again."""
        file = self.config.work / METRICS
        if self.workers.is_first and file.exists():
            lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            with atomic_write(file) as partial:
                partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= steps))
        self.workers.wait()

    def _log(self, figures: dict[str, float]) -> None:
        if self.workers.is_first:
            with (self.config.work / METRICS).open("a") as log:
                log.write(json.dumps({name: round(value, 6) for name, value in figures.items()}) + "\n")


def use(threads: int) -> None:
    """Arithmetic of this process: so many threads, 0 for all cores; glibc keeps the memory that is freed."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    keep_freed_memory()


def metrics(folder: Path) -> list[dict[str, float]]:
    """What a run logged, step by step."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
