"""`python -m train tiny-mla`: train, export and measure the shipped model, from nothing but installed packages.

`python -m train drafter FILE`: what `sparkpool train` does, for torchrun, which starts as many workers as it is told.
"""

from __future__ import annotations

import argparse
import datetime
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, DeepseekV3Config, PreTrainedTokenizerFast

from train.batches import Batches
from train.card import card
from train.corpus import HELD_OUT_ONE_IN, Corpus
from train.drafter_config import TrainConfig
from train.drafter_run import DrafterRun, silent, use
from train.evaluate import evaluate
from train.export import export
from train.machine import keep_freed_memory, machine
from train.progress import Bars
from train.tiny_mla import Recipe, Trainer, parameter_counts
from train.tokenizer import train_tokenizer
from train.workers import joined

RESULTS = Path(__file__).parent / "results" / "tiny-mla.json"
REPORT_STEPS = 20


def shape(config: DeepseekV3Config) -> dict[str, Any]:
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


def saved_tokenizer(corpus: Corpus, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, trained there on the first call."""
    if not folder.exists():
        tokenizer = train_tokenizer(document.text for document in corpus.training)
        tokenizer.save_pretrained(folder, save_jinja_files=False)
    return AutoTokenizer.from_pretrained(folder)


def facts(trainer: Trainer, corpus: Corpus) -> dict[str, Any]:
    """What was trained, on what, where and with which versions."""
    parameters = dict(parameter_counts(trainer))
    tally, batches = trainer.tally, trainer.batches
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy")},
        "model": shape(trainer.model.config) | {"num_parameters": sum(parameters.values()), "parameters": parameters},
        "training": {
            "tokens": tally.tokens,
            "mtp_tokens": tally.mtp_tokens,
            "steps": tally.steps,
            "seconds": round(tally.seconds),
            "budgets": tally.budgets,
            "tokens_by_length": tally.tokens_by_length,
            "corpus_tokens": len(batches.texts[0].tokens),
            "chat_tokens": len(batches.chat.tokens),
            "held_out_one_in": HELD_OUT_ONE_IN,
            "packages": corpus.versions(),
        },
    }


def train_tiny_mla(recipe: Recipe, out: Path, work: Path, device: str, stop_early: bool) -> None:
    """Trains (or goes on from the checkpoint in `work`), then writes `out`, its card and the results file."""
    console = Console(soft_wrap=True)
    corpus = Corpus.collect()
    tokenizer = saved_tokenizer(corpus, work / "tokenizer")
    trainer = Trainer(recipe, Batches.load(lambda: corpus, tokenizer, work / "tokens.npz"), work, device)

    def report(figures: dict[str, float]) -> None:
        if trainer.tally.steps % REPORT_STEPS == 0:
            console.print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))

    if stop_early:
        trainer.restore()
    else:
        trainer.train(report)
    export(trainer.model, trainer.mtp, tokenizer, out)
    console.print(f"measuring {out}")
    results = facts(trainer, corpus) | evaluate(out, corpus, trainer.batches.texts[0].tokens)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(card(json.loads(RESULTS.read_text())))
    console.print(f"held-out loss {results['held_out']['loss']:.3f}, bigram {results['held_out']['bigram_loss']:.3f}")


def train_drafter(config: TrainConfig, threads: int) -> None:
    """As one of the workers that the environment speaks of (RANK, WORLD_SIZE), or alone."""
    use(threads)
    with joined(config.training.device) as (workers, device), Bars(Console(soft_wrap=True)) as bars:
        DrafterRun(config.on(device), workers, bars if workers.is_first else silent).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    model = what.add_parser("tiny-mla", help="the target")
    model.add_argument("--threads", type=int, default=torch.get_num_threads())
    model.add_argument("--stop-early", action="store_true", help="export the last checkpoint as it is")
    model.add_argument("--out", type=Path, default=Path("models/tiny-mla"), help="the checkpoint folder to write")
    model.add_argument("--work", type=Path, default=Path("build/tiny-mla"), help="checkpoints and encoded corpus")
    model.add_argument("--minutes", type=float, default=Recipe.minutes, help="wall-clock budget of the training")
    model.add_argument("--tokens", type=int, help="budget in tokens instead (the better choice on a GPU)")
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    drafter = what.add_parser("drafter", help="a drafter, by every process that torchrun starts")
    drafter.add_argument("file", type=Path, help="what to train, and how (train/drafter_config.py)")
    drafter.add_argument("--threads", type=int, default=0, help="of each worker; 0 takes all cores")
    arguments = parser.parse_args()
    if arguments.what == "drafter":
        train_drafter(TrainConfig.load(arguments.file), arguments.threads)
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(minutes=arguments.minutes, tokens=arguments.tokens)
    train_tiny_mla(recipe, arguments.out, arguments.work, arguments.device, arguments.stop_early)


if __name__ == "__main__":
    main()
