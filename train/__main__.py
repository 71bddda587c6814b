"""`python -m train tiny-mla`: trains, exports and measures the shipped model from nothing but installed packages."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, DeepseekV3Config, PreTrainedTokenizerFast

from train.batches import Batches
from train.card import card
from train.corpus import HELD_OUT_ONE_IN, Corpus
from train.evaluate import evaluate
from train.export import export
from train.tiny_mla import Recipe, Trainer, parameter_counts
from train.tokenizer import train_tokenizer

RESULTS = Path(__file__).parent / "results" / "tiny-mla.json"
REPORT_STEPS = 20


def keep_freed_memory() -> None:
    """Lets glibc reuse large freed blocks: returning them costs training on CPU a sixth of its speed."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def machine() -> str:
    """The processor (or accelerator) and its number of cores, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores of a shared CPU machine ({name}, {capability}), no GPU"


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
    trainer = Trainer(recipe, Batches.load(corpus, tokenizer, work / "tokens.npz"), work, device)

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("what", choices=["tiny-mla"])
    parser.add_argument("--out", type=Path, default=Path("models/tiny-mla"), help="the checkpoint folder to write")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-mla"), help="checkpoints and encoded corpus")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="wall-clock budget of the training")
    parser.add_argument("--tokens", type=int, help="budget in tokens instead (the better choice on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stop-early", action="store_true", help="export the last checkpoint as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(minutes=arguments.minutes, tokens=arguments.tokens)
    train_tiny_mla(recipe, arguments.out, arguments.work, arguments.device, arguments.stop_early)


if __name__ == "__main__":
    main()
