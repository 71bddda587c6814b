"""The card of the tiny model, written from the results file alone, so that the two cannot differ."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.card import render, table

TEMPLATE = Path(__file__).with_name("card.md")


def card(results: Mapping[str, Any]) -> str:
    """Return the card's Markdown."""
    model, training, held_out = (results[key] for key in ("model", "training", "held_out"))
    by_length = (f"{count / 1e6:.2f}M at {length}" for length, count in training["tokens_by_length"].items())
    millions = {name: count / 1e6 for name, count in training.items() if name.endswith("tokens")}
    values = {
        "millions": millions | {"parameters": model["num_parameters"] / 1e6},
        "cached": model["kv_rank"] + model["rope"],
        "hours": training["seconds"] / 3600,
        "by_length": ", ".join(by_length),
        "extended": _extended(training["budgets"]),
        "packages": table(("package", "version"), training["packages"].items()),
        "by_position": _list(held_out["loss_by_position"]),
        "by_package": _list(held_out["loss_by_package"]),
        "samples": "\n".join(map(_sample, results["samples"])),
        "versions": json.dumps(results["versions"]),
    }
    return render(TEMPLATE, {**results, **values})


def _extended(budgets: list[float]) -> str:
    if len(budgets) == 1:
        return ""
    return f"\nThe run was extended from {budgets[0]:g} to {budgets[-1]:g} minutes, so that the rates rose once more."


def _list(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{key}: {value:.3f}" for key, value in figures.items())


def _sample(sample: Mapping[str, str]) -> str:
    return f"`{sample['path']}`, `{sample['name']}`:\n\n````python\n{sample['prompt']}⟫{sample['reply']}\n````\n"
