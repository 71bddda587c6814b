"""One run of `python -m train tiny-mla`: train, export and measure the model, then write its card."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer, DeepseekV3Config

from train.batches import Batches
from train.corpus import HELD_OUT_ONE_IN, Corpus
from train.model.card import card
from train.model.evaluation import evaluate
from train.model.export import export
from train.model.trainer import Recipe, Trainer
from train.provenance import provenance
from train.tokenizer import train_tokenizer

RESULTS = Path(__file__).parents[1] / "results" / "tiny-mla.json"
REPORT_STEPS = 20


@dataclass(frozen=True)
class ModelRun:
    """The folders of a run: `out` is the checkpoint to write, `work` keeps what an interrupted run continues from."""

    recipe: Recipe
    out: Path
    work: Path
    device: str

    def run(self, stop_early: bool) -> None:
        """Train from the checkpoint in `work`, if there is one (`stop_early`: export it as it is)."""
        console = Console(soft_wrap=True)
        self.work.mkdir(parents=True, exist_ok=True)
        corpus, folder = Corpus.collect(), self.work / "tokenizer"
        if not folder.exists():
            train_tokenizer(file.text for file in corpus.training).save_pretrained(folder, save_jinja_files=False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batches = Batches.load(lambda: corpus, tokenizer, self.work / "tokens.npz")
        trainer = Trainer(self.recipe, batches, self.work, self.device)

        def report(figures: dict[str, float]) -> None:
            if trainer.progress.steps % REPORT_STEPS == 0:
                console.print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))

        if stop_early:
            trainer.restore()
        else:
            trainer.train(report)
        export(trainer.model, trainer.mtp, tokenizer, self.out)
        console.print(f"measuring {self.out}")
        measured = evaluate(self.out, corpus, batches.texts[0].tokens)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(facts(trainer, corpus) | measured, indent=2, ensure_ascii=False) + "\n")
        (self.out / "README.md").write_text(card(json.loads(RESULTS.read_text())))
        held_out = measured["held_out"]
        console.print(f"held-out loss {held_out['loss']:.3f}, bigram {held_out['bigram_loss']:.3f}")


def facts(trainer: Trainer, corpus: Corpus) -> dict[str, object]:
    """Return what was trained, on what, on which machine and with which versions."""
    modules = {"main model": trainer.model, "MTP layer": trainer.mtp}
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    progress, batches = trainer.progress, trainer.batches
    return {
        **provenance("torch", "transformers", "tokenizers", "safetensors", "numpy"),
        "model": shape(trainer.model.config) | {"num_parameters": sum(parameters.values()), "parameters": parameters},
        "training": {
            "tokens": progress.tokens,
            "mtp_tokens": progress.mtp_tokens,
            "steps": progress.steps,
            "seconds": round(progress.seconds),
            "budgets": progress.budgets,
            "tokens_by_length": progress.tokens_by_length,
            "corpus_tokens": len(batches.texts[0].tokens),
            "chat_tokens": len(batches.chat.tokens),
            "held_out_one_in": HELD_OUT_ONE_IN,
            "packages": corpus.versions(),
        },
    }


def shape(config: DeepseekV3Config) -> dict[str, int]:
    """Return the configuration's figures under the card's names."""
    return {
        "layers": config.num_hidden_layers,
        "experts": config.n_routed_experts,
        "top": config.num_experts_per_tok,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_rank": config.kv_lora_rank,
        "rope": config.qk_rope_head_dim,
        "context": config.max_position_embeddings,
        "theta": config.rope_parameters["rope_theta"],
        "vocab": config.vocab_size,
    }
