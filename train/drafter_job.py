"""From a target to its shipped drafter: text, training, export, figures, card."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from train.batches import Batches
from train.continuations import written
from train.corpus import Corpus
from train.drafter_card import drafter_card
from train.drafter_evaluate import evaluate_drafter
from train.drafting import FrozenTarget
from train.dspark import TINY_MLA_SHAPE, DrafterTrainer, Recipe, Sequences, drafter_config, export_drafter
from train.machine import machine

RESULTS = Path(__file__).parent / "results" / "tiny-mla-dspark.json"
REPORT_STEPS = 20
WRITTEN_SEQUENCES, SEQUENCE_TOKENS = 1536, 320


@dataclass(frozen=True)
class DrafterJob:
    """`work` keeps what an interrupted run goes on from."""

    recipe: Recipe
    target: Path
    out: Path
    work: Path
    num_sequences: int = WRITTEN_SEQUENCES

    def run(self, stop_early: bool = False) -> None:
        """Trains (or goes on from the checkpoint in `work`), then writes `out`, its card and the results file."""
        console = Console(soft_wrap=True)
        corpus = Corpus.collect()
        trainer = self._trainer(corpus, console)

        def report(figures: dict[str, float]) -> None:
            if trainer.steps % REPORT_STEPS == 0:
                console.print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))

        if stop_early:
            trainer.restore()
        else:
            trainer.train(report)
        export_drafter(trainer.model, trainer.config, self.out)
        console.print(f"measuring {self.out}")
        results = self._facts(trainer) | {"measured": evaluate_drafter(self.out, self.target, corpus)}
        RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        (self.out / "README.md").write_text(drafter_card(json.loads(RESULTS.read_text())))
        console.print(f"accepted length {results['measured']['engine_accepted_length']}")

    def _trainer(self, corpus: Corpus, console: Console) -> DrafterTrainer:
        tokenizer = AutoTokenizer.from_pretrained(self.target)
        batches = Batches.load(corpus, tokenizer, self.work / "tokens.npz")
        target = FrozenTarget.load(self.target, TINY_MLA_SHAPE.tap_layers)
        text_NT = written(
            target.model, batches, self.num_sequences, SEQUENCE_TOKENS, self.work / "continuations", console.print
        )
        config = drafter_config(json.loads((self.target / "config.json").read_text()), TINY_MLA_SHAPE)
        sequences = Sequences(text_NT, batches.texts[0].tokens)
        return DrafterTrainer(self.recipe, config, target, sequences, self.work)

    def _facts(self, trainer: DrafterTrainer) -> dict[str, Any]:
        """What was trained, on what, where and with which versions."""
        config, recipe = trainer.config, trainer.recipe
        keys = ("block_size", "mask_token_id", "markov_rank", "markov_head_type")
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
            "model": {key: config[key] for key in keys}
            | {
                "layers": config["num_hidden_layers"],
                "hidden": config["hidden_size"],
                "heads": config["num_attention_heads"],
                "taps": config["target_layer_ids"],
                "target_layers": config["num_target_layers"],
                "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
                "bytes": (self.out / "model.safetensors").stat().st_size,
            },
            "training": {
                "steps": trainer.steps,
                "seconds": round(trainer.seconds),
                "progress": trainer.progress,
                "blocks": trainer.blocks,
                "rows": recipe.rows,
                "anchors": recipe.anchors,
                "corpus_share": recipe.corpus_share,
                "written": len(trainer.sequences.written),
                "length": trainer.sequences.written.shape[1],
            },
        }
