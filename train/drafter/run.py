"""One run of `sparkpool train`: text, features, training, drafter. Each part continues where an earlier run stopped.

With several workers the first one writes, and the others wait for it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from threading import Event

import torch

from engine.errors import ConfigError
from engine.files import replaced
from train.drafter.config import JsonObject, TrainConfig
from train.drafter.features import CachedFeatures, Features, OnlineFeatures
from train.drafter.identity import require_same
from train.drafter.progress import ProgressReport, no_progress
from train.drafter.sequences import Sequences, Writer
from train.drafter.shape import drafter_config, export_drafter
from train.drafter.target import FrozenTarget
from train.drafter.trainer import LOSS_NAMES, DrafterTrainer
from train.drafter.workers import ALONE, Workers
from train.provenance import provenance

CHECKPOINT, METRICS, FACTS = "checkpoint.pt", "metrics.jsonl", "training.json"
LAST_STEPS = 100


@dataclass(frozen=True)
class DrafterRun:
    """The run of one configuration, by one of `workers`."""

    config: TrainConfig
    workers: Workers = ALONE
    report: ProgressReport = no_progress
    stop: Event = field(default_factory=Event)

    def run(self) -> DrafterTrainer:
        """Train until all steps are done, or until `stop` is set: then save a checkpoint for a later run.

        Raises ConfigError.
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
            with replaced(self.config.out / FACTS) as partial:
                partial.write_text(json.dumps(self._facts(trainer), indent=1) + "\n")
        self.workers.wait()
        return trainer

    def trainer(self) -> DrafterTrainer:
        """Return the trainer, ready for its next step."""
        config = self.config
        config.work.mkdir(parents=True, exist_ok=True)
        device = torch.device(config.training.device)
        layers, dtype = config.drafter.target_layer_ids, config.target.torch_dtype
        target = FrozenTarget.load(config.target.path, layers, dtype, device)
        text = self._text(target)
        trainer = DrafterTrainer(config.training, self._raw, target, text, self._features(target, text), self.workers)
        self._restore(trainer)
        return trainer

    @property
    def _raw(self) -> JsonObject:
        return drafter_config(self.config.target.path, self.config.drafter, self.config.training.anchors)

    def _text(self, target: FrozenTarget) -> Sequences:
        config = self.config
        writer = Writer(target.model, config.target.path, config.text, config.text_folder / "text")
        with self._first_worker_first():
            text = writer.written(lambda done, total: self.report("text", done, total))
        too_short = text.end_N - text.first_N < 2
        if too_short.all():
            raise ConfigError(f"{config.text_folder}: the target generated nothing after any of {len(text)} prompts")
        return text.only(~too_short)

    def _features(self, target: FrozenTarget, text: Sequences) -> Features:
        config = self.config
        if not config.features.cache:
            return OnlineFeatures(target, text)
        dtype: torch.dtype = getattr(torch, config.features.dtype)
        cached = CachedFeatures(target, text, config.text_folder / "features", dtype)
        with self._first_worker_first():
            cached.prepare(lambda done, total: self.report("features", done, total, f"{cached.num_bytes / 1e9:.1f} GB"))
        return cached

    @contextmanager
    def _first_worker_first(self) -> Iterator[None]:
        if not self.workers.is_first:
            self.workers.wait()
        yield
        if self.workers.is_first:
            self.workers.wait()

    def _identity(self, trainer: DrafterTrainer) -> dict[str, object]:
        """Return what must be the same for a checkpoint to be continued from."""
        training = self.config.training.model_dump(mode="json", exclude={"checkpoint_steps", "device"})
        return {
            "target": trainer.target.model.fingerprint,
            "text": {"digest": trainer.text.digest},
            "drafter": self._raw,
            "training": training,
            "features": self.config.features.model_dump(),
        }

    def _facts(self, trainer: DrafterTrainer) -> dict[str, object]:
        """Return the record of the training that is stored beside the weights."""
        config, last = self.config, metrics(self.config.work)[-LAST_STEPS:]
        return {
            **provenance("torch", "transformers", "safetensors", "numpy"),
            "threads": torch.get_num_threads(),
            "workers": self.workers.count,
            "target": trainer.target.model.fingerprint,
            "text": config.text.model_dump(mode="json", exclude={"prompts"}) | {"digest": trainer.text.digest},
            "text_tokens": trainer.text.num_tokens,
            "features": config.features.model_dump(),
            "training": config.training.model_dump(mode="json"),
            "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "steps": trainer.steps,
            "seconds": round(trainer.seconds),
            "tokens": trainer.tokens,
            f"mean_of_last_{len(last)}_steps": {n: round(mean(line[n] for line in last), 4) for n in LOSS_NAMES},
        }

    def _save(self, trainer: DrafterTrainer) -> None:
        if self.workers.is_first:
            with replaced(self.config.work / CHECKPOINT) as partial:
                torch.save({"identity": self._identity(trainer), **trainer.state()}, partial)
        self.workers.wait()

    def _restore(self, trainer: DrafterTrainer) -> None:
        file = self.config.work / CHECKPOINT
        if file.exists():
            try:
                state = torch.load(file, map_location=self.config.training.device, weights_only=True)
                stored = state.pop("identity")
            except Exception as error:
                raise ConfigError(f"{file}: cannot be read ({error}); delete it to begin again") from error
            remedy = "name another `work` folder, or delete the file to begin again"
            require_same(file, stored, self._identity(trainer), "that run began", remedy)
            trainer.restore(state)
        self._drop_later_metrics(trainer.steps)

    def _drop_later_metrics(self, steps: int) -> None:
        """Remove the lines of steps after the checkpoint, which a killed run logged: they are computed again."""
        file = self.config.work / METRICS
        if self.workers.is_first and file.exists():
            lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            with replaced(file) as partial:
                partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= steps))
        self.workers.wait()

    def _log(self, figures: dict[str, float]) -> None:
        if self.workers.is_first:
            with (self.config.work / METRICS).open("a") as log:
                log.write(json.dumps({name: round(value, 6) for name, value in figures.items()}) + "\n")


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the figures that a run logged, step by step."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
