"""The model card, written from the results file alone, so that the two cannot differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HEAD = """---
license: other
library_name: transformers
pipeline_tag: text-generation
tags: [deepseek_v3, mla, moe, mtp, tiny]
---

# tiny-mla

A DeepSeek-V3 model small enough to live in a Git repository: multi-head latent attention, a mixture of experts and
a *trained* next-token-prediction (MTP) layer, {millions:.1f} million parameters in all. It exists so that
demonstrations and tests of a serving engine run on real, if modest, predictions. It continues Python source and has
seen nothing else.

## Shape

| | |
|---|---|
| layers | {layers} (the first dense, the others {experts} experts, top-{top}, and 1 shared) and 1 MTP layer |
| hidden, heads | {hidden}, {heads} heads |
| latent | `kv_lora_rank` {kv_rank} + rope key {rope}: one cached row of {cached} numbers per token and layer |
| context | {context} tokens (see the figures by position), rope theta {theta:.0f}, no scaling |
| vocabulary | {vocab}, byte-level BPE, no BOS |
| weights | bfloat16; the routers' `e_score_correction_bias` float32 |

The MTP layer lies where DeepSeek-V3 publishes it, at `model.layers.{layers}.*`. It uses the main model's embedding
and head, which the file therefore holds once (that layer's `embed_tokens` and `shared_head.head` are omitted). Its
input is `eh_proj(cat(enorm(embedding of token i+1), hnorm(final-normed state of token i)))`, at position i+1.
transformers reports these keys as unexpected when it loads the main model: that is known and harmless.

"""
TRAINING = """## Training

Trained from nothing with `python -m train tiny-mla` on {date}, on {machine}: {tokens:.2f} million tokens in {steps}
steps and {hours:.2f} hours, of them {mtp:.2f} million also through the MTP layer (which learns beside the main model
and sends no gradient into it). By row length: {by_length}. The corpus has {corpus:.1f} million tokens of source and
{chat:.1f} million of chats. Muon for matrices, AdamW for the rest; warm-up, stable, linear decay; the experts are
balanced by bias, without auxiliary loss.{extended}

Text: Python source of the packages below, as installed: files that are UTF-8, written by people and neither very
small nor very large, each content once, leading licence comments removed; of the largest packages a share. One file
in {held_out_one_in} is held out (chosen by the hash of its path). Of 16 rows one holds chats made from the same
files: a docstring asks, the function's code answers and ends with `<|endoftext|>`.

| package | version |
|---|---|
{packages}

"""
QUALITY = """## Measured

On {files} held-out files, {eval_tokens} tokens, rows of {row_tokens} (bfloat16 weights, computed in float32):

| | nats per token |
|---|---|
| **this model** | **{loss:.3f}** (perplexity {perplexity:.2f}, {bits:.3f} bits per byte) |
| bigram (Kneser-Ney, counted on the training corpus) | {bigram:.3f} |
| unigram | {unigram:.3f} |

By position in rows of {longest} tokens: {by_position}.

Little of the training was at the longest rows (see above): where the loss rises again, positions are trained thinly.

By package of the held-out file: {by_package}.
Some packages repeat code between files, which flatters their figures; the standard library's is the sternest.

The MTP layer, on held-out text: loss {mtp_loss:.3f} two tokens ahead, top-1 {mtp_top1:.1%} (the most frequent token:
{mtp_unigram:.1%}); it agrees with the main model's own best next token in {mtp_agreement:.1%} of places there, and
in {mtp_acceptance:.1%} on text that the main model itself writes greedily (that is MTP-1's acceptance).

"""
TAIL = """## Use and limits

For demonstrations, tests and benchmarks of serving code. It writes plausible Python, rarely useful Python, and no
prose; it knows no facts and follows no instructions beyond the form of a chat, and greedy text soon repeats itself
(which flatters greedy acceptance). Do not rely on code that it writes.

## Licence

Trained on open-source code of the packages listed above (permissive licences in the main: PSF, BSD, MIT, Apache
2.0; MPL 2.0 for a few). It may repeat short passages of it; their licences then apply to those passages.

## Greedy samples

From held-out functions; what follows the mark ⟫ is the model's.

"""


def table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def extended(budgets: list[float]) -> str:
    """A sentence for a run that was given more time while it went on."""
    if len(budgets) == 1:
        return ""
    return f"\nThe run was extended from {budgets[0]:g} to {budgets[-1]:g} minutes, so that the rates rose once more."


def listed(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{key}: {value:.3f}" for key, value in figures.items())


def sample_text(sample: Mapping[str, str]) -> str:
    return f"`{sample['path']}`, `{sample['name']}`:\n\n````python\n{sample['prompt']}⟫{sample['reply']}\n````\n"


def card(results: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    shape, training, held_out, mtp = (results[key] for key in ("model", "training", "held_out", "mtp"))
    by_length = ", ".join(f"{count / 1e6:.2f}M at {length}" for length, count in training["tokens_by_length"].items())
    parts = [
        HEAD.format(**shape, cached=shape["kv_rank"] + shape["rope"], millions=shape["num_parameters"] / 1e6),
        TRAINING.format(
            date=results["date"],
            machine=results["machine"],
            tokens=training["tokens"] / 1e6,
            steps=training["steps"],
            hours=training["seconds"] / 3600,
            mtp=training["mtp_tokens"] / 1e6,
            corpus=training["corpus_tokens"] / 1e6,
            chat=training["chat_tokens"] / 1e6,
            by_length=by_length,
            extended=extended(training["budgets"]),
            held_out_one_in=training["held_out_one_in"],
            packages=table(training["packages"]),
        ),
        QUALITY.format(
            files=held_out["files"],
            eval_tokens=held_out["tokens"],
            row_tokens=held_out["row_tokens"],
            loss=held_out["loss"],
            perplexity=held_out["perplexity"],
            bits=held_out["bits_per_byte"],
            bigram=held_out["bigram_loss"],
            unigram=held_out["unigram_loss"],
            longest=shape["context"],
            by_position=listed(held_out["loss_by_position"]),
            by_package=listed(held_out["loss_by_package"]),
            mtp_loss=mtp["loss"],
            mtp_top1=mtp["top1"],
            mtp_unigram=mtp["unigram_top1"],
            mtp_agreement=mtp["agreement"],
            mtp_acceptance=mtp["greedy_acceptance"],
        ),
        TAIL,
        "\n".join(sample_text(sample) for sample in results["samples"]),
        f"\nVersions: {json.dumps(results['versions'])}\n",
    ]
    return "".join(parts)
