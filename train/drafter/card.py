"""The card of the shipped drafter, written from its own files and the benchmark's result, so that they cannot differ.

`make docs` writes it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from engine.config import Config
from local import Builder
from train.card import render, table

TEMPLATE = Path(__file__).with_name("card.md")
LABELS = {"distribution": "the target's distribution", "tokens": "the text's tokens"}


class AcceptanceRow(TypedDict):
    """One row of the figures of bench/acceptance.py."""

    domain: str
    setting: str
    drafter: str
    accepted_length: float
    standard_error: float
    ece: float
    auc: float
    acceptance: str


def drafter_card(folder: Path, target: Path, acceptance: Mapping[str, Any]) -> str:
    """Return the card's Markdown. `acceptance` is the result file of bench/acceptance.py."""
    shape, facts = (json.loads((folder / name).read_text()) for name in ("config.json", "training.json"))
    cached = numbers_per_token(target, folder)
    rows, (asked,) = acceptance["figures"]["accepted length"], acceptance["figures"]["asked"]
    losses = facts["training"]["losses"]
    values = {
        "shape": shape,
        "facts": facts,
        "training": facts["training"],
        "text": facts["text"],
        "losses": losses,
        "cached": cached,
        "asked": asked,
        "millions": facts["num_parameters"] / 1e6,
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "masks": shape["block_size"] - 1,
        "carried": 1 + cached["drafter"] / cached["target"],
        "labels": LABELS[losses["labels"]],
        "minutes": facts["seconds"] / 60,
        "measured_date": acceptance["date"][:10],
        "lengths": _lengths(rows),
        "positions": _positions([row for row in rows if row["drafter"] == rows[0]["drafter"]]),
        "versions": json.dumps(facts["versions"]),
    }
    return render(TEMPLATE, values)


def _lengths(rows: list[AcceptanceRow]) -> str:
    drafters = list(dict.fromkeys(row["drafter"] for row in rows))
    by_key = {(row["domain"], row["setting"], row["drafter"]): row for row in rows}
    lines = []
    for domain, setting in dict.fromkeys((row["domain"], row["setting"]) for row in rows):
        found = [by_key[domain, setting, drafter] for drafter in drafters]
        cells = [f"{row['accepted_length']:.2f} ± {row['standard_error']:.2f}" for row in found]
        lines.append((domain, setting, *cells, f"{found[0]['ece']:.1%}", f"{found[0]['auc']:.2f}"))
    return table(("domain", "setting", *drafters, "ECE", "AUC"), lines)


def _positions(rows: list[AcceptanceRow]) -> str:
    cells = [row["acceptance"].split() for row in rows]
    numbers = [str(k + 1) for k in range(len(cells[0]))]
    lines = [(row["domain"], row["setting"], *values) for row, values in zip(rows, cells, strict=True)]
    return table(("domain", "setting", *numbers), lines)


def numbers_per_token(target: Path, folder: Path) -> dict[str, int]:
    """Return how many numbers target and drafter cache per token."""
    config = Config.parse({"model": {"path": target, "drafter": folder}})
    builder = Builder(config, config.prefill)
    assert builder.drafter is not None
    sizes = {"target": 0, "drafter": 0}
    for entry in (*builder.model.entries, *builder.drafter.entries):
        sizes[entry.part] += math.prod(entry.shape)
    return sizes
