"""The shipped drafter's card, written from its own files and the benchmark's result, so that they cannot differ.

`make docs` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import Config
from local import Builder

HEAD = """---
license: other
tags: [dspark, speculative-decoding, drafter, deepseek_v3, mla, tiny]
---

# tiny-mla-dspark

The DSpark drafter of [tiny-mla](../tiny-mla/README.md): {millions:.2f} million parameters that draft {block_size}
tokens at once, which the target then verifies in one step. It is useful for that target alone, whose
embedding and output head it shares (they are not in this file), and exists so that demonstrations and tests of
speculative decoding run on real, if modest, drafts.

## Shape

| | |
|---|---|
| form | DSpark as published by DeepSpec, but with the target's latent attention: `DeepseekV3DSparkModel` |
| backbone | {num_hidden_layers} layers with dense MLP, hidden {hidden_size}, {num_attention_heads} heads |
| taps | the target's hidden states after layers {target_layer_ids} (counted from 0), of {num_target_layers} |
| cached | {drafter_numbers} numbers per token beside the target's {target_numbers}: {carried:.2f} times the bytes |
| block | {block_size} drafts: the last committed token and {masks} mask tokens |
| mask token | {mask_token_id}, `<|pad|>`: no text contains it, so the target never says it |
| heads | {markov_head_type} Markov head of rank {markov_rank}; confidence head with the Markov embedding |
| confidences | calibrated by place (`calibration.json`) at temperature 1, on other prompts than those below |
| weights | bfloat16, {megabytes:.1f} MB |

"""
TRAINING = """## Training

`sparkpool train models/tiny-mla-dspark/train.yaml` (or `make drafter`), {date}, {machine}, {threads} thread(s):
{steps:,} steps of {sequences} sequences with {anchors} anchors each, {minutes:.0f} minutes of training beside other
work. `training.json` has the rest. The target is frozen; its hidden states were kept on disk in {feature_dtype}.

Text: {written:,} sequences of at most {length} tokens, each a prompt from tiny-mla's training corpus (32 to 192 tokens)
and what the target says after it (a fourth greedily, a fourth at temperature 0.8, half at 1.0), and {plain:,} pieces of
the corpus as it is.

Losses: {cross_entropy:g} x cross-entropy with {labels} + {l1:g} x L1 between the distributions of draft and target +
{confidence:g} x binary cross-entropy of the confidence, whose label is the analytic acceptance 1 - 0.5 L1; draft k has
weight exp(-(k - 1) / {position_decay:g}). DeepSpec trains with 0.1 x cross-entropy with the text's tokens; for a
drafter this small the target's whole distribution is the better teacher. The Markov head is told the sequence's own
tokens. Muon for the backbone's matrices, AdamW for the rest.

"""
QUALITY = """## Measured

By `make bench NAME=acceptance` on {measured_date}: {requests} held-out prompts of each domain, answers of {tokens}
tokens, {concurrency} requests at a time, every draft verified. Accepted length: tokens that a round gives, the target's
own included. The two ablations had the same text and as many steps; they are not shipped.

{table}

Acceptance of the shipped drafter by place, of the drafts reached:

{places}

![reliability before and after calibration, on the prompts it was fitted on](reliability.png)

Calibration error (20 bins, DeepSpec's definition) and area under the curve of its survival estimates are in the first
table; "T=1 seeded" is the rule for requests with a seed of their own, which get the very tokens that they would get
without drafts and therefore accept less.

## Limits

It knows Python source and little else, as its target does; sequences of {length} tokens are the longest it has seen.
On a CPU drafting pays for a request that runs alone, and little or not at all beside others: a step that verifies 8
tokens of each costs far more than one that decodes a token (docs/benchmarks.md, speculation). For the licence of what
it has learnt from, see the target's card.

Versions: {versions}
"""


def drafter_card(folder: Path, target: Path, acceptance: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read. `acceptance` is the result file of bench/acceptance.py."""
    shape = json.loads((folder / "config.json").read_text())
    facts = json.loads((folder / "training.json").read_text())
    training, text = facts["training"], facts["text"]
    cached = numbers_per_token(target, folder)
    rows, (asked,) = acceptance["figures"]["accepted length"], acceptance["figures"]["asked"]
    head = HEAD.format(
        **shape,
        millions=facts["num_parameters"] / 1e6,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        masks=shape["block_size"] - 1,
        drafter_numbers=cached["drafter"],
        target_numbers=cached["target"],
        carried=1 + cached["drafter"] / cached["target"],
    )
    losses = training["losses"] | {
        "labels": {"distribution": "the target's distribution", "tokens": "the text's tokens"}[
            training["losses"]["labels"]
        ]
    }
    learned = TRAINING.format(
        **{key: facts[key] for key in ("date", "machine", "threads", "steps")},
        **{key: training[key] for key in ("sequences", "anchors")},
        **losses,
        minutes=facts["seconds"] / 60,
        feature_dtype=facts["features"]["dtype"],
        written=text["sequences"],
        plain=text["plain"],
        length=text["tokens"],
    )
    quality = QUALITY.format(
        measured_date=acceptance["date"][:10],
        **asked,
        table=_lengths(rows),
        places=_places(rows),
        length=text["tokens"],
        versions=json.dumps(facts["versions"]),
    )
    return head + learned + quality


def _lengths(rows: list[dict[str, Any]]) -> str:
    drafters = list(dict.fromkeys(row["drafter"] for row in rows))
    by_place = {(row["domain"], row["setting"], row["drafter"]): row for row in rows}
    lines = [f"| domain | setting | {' | '.join(drafters)} | ECE | AUC |", f"|---|---|{'---|' * (len(drafters) + 2)}"]
    for domain, setting in dict.fromkeys((row["domain"], row["setting"]) for row in rows):
        found = [by_place[domain, setting, drafter] for drafter in drafters]
        cells = [f"{row['accepted_length']:.2f} ± {row['standard_error']:.2f}" for row in found]
        quality = (f"{found[0]['ece']:.1%}", f"{found[0]['auc']:.2f}")
        lines.append(f"| {domain} | {setting} | {' | '.join((*cells, *quality))} |")
    return "\n".join(lines)


def _places(rows: list[dict[str, Any]]) -> str:
    own = [row for row in rows if row["drafter"] == rows[0]["drafter"]]
    count = len(own[0]["acceptance"].split())
    lines = [f"| domain | setting | {' | '.join(str(k + 1) for k in range(count))} |", f"|---|---|{'---|' * count}"]
    lines += [f"| {r['domain']} | {r['setting']} | {' | '.join(r['acceptance'].split())} |" for r in own]
    return "\n".join(lines)


def numbers_per_token(target: Path, folder: Path) -> dict[str, int]:
    """What target and drafter cache of each token."""
    config = Config.parse({"model": {"path": target, "drafter": folder}})
    builder = Builder(config, config.prefill)
    assert builder.drafter is not None
    sizes = {"target": 0, "drafter": 0}
    for entry in (*builder.model.entries, *builder.drafter.entries):
        sizes[entry.part] += math.prod(entry.shape)
    return sizes
