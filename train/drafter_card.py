"""The drafter's model card, written from the results file alone, so that the two cannot differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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
| backbone | {layers} layers with dense MLP, hidden {hidden}, {heads} heads |
| taps | the target's hidden states after layers {taps} (counted from 0), of {target_layers} |
| cached | {drafter_numbers} numbers per token beside the target's {target_numbers}: {carried:.2f} times the bytes |
| block | {block_size} drafts: the last committed token and {masks} mask tokens |
| mask token | {mask_token_id}, `<|pad|>`: no text contains it, so the target never says it |
| heads | {markov_head_type} Markov head of rank {markov_rank}; confidence head with the Markov embedding |
| weights | bfloat16, {megabytes:.1f} MB |

"""
TRAINING = """## Training

Trained with `python -m train dspark` on {date}, on {machine}: {steps} steps of {rows} sequences and {anchors} anchors
each, {blocks} blocks in {minutes:.0f} minutes. The target is frozen; its hidden states are computed as they are needed.

Text: {written} sequences of {length} tokens that begin with a prompt of tiny-mla's training corpus (32 to 192 tokens)
and go on as the target does: a fourth of them greedily, a fourth at temperature 0.8, half at 1.0. Of the sequences in
a batch, {corpus_share:.0%} are plain text of the corpus instead.

Losses as published: 0.1 cross-entropy with the sequence's tokens + 0.9 L1 between the distributions of draft and
target + 1.0 binary cross-entropy of the confidence, whose label is the analytic acceptance 1 - 0.5 L1; draft k has
weight exp(-(k - 1) / 4). The Markov head is told the sequence's own tokens. Muon for the backbone's matrices, AdamW for
heads and norms, warm-up and cosine decay, bfloat16 arithmetic.{cut}

"""
QUALITY = """## Measured

After {prompts} prompts of {prompt_tokens} tokens from held-out files, on the {written_tokens} tokens that the target
itself says next, at every place (bfloat16 weights, computed in float32). Each draft is told the tokens before it.

| draft | {header} |
|---|{rule}|
| same best token as the target, greedy text | {agreement} |
| acceptance 1 - TV, text at temperature 1 | {acceptance} |
| confidence there | {confidence} |

Accepted length (tokens of a round, the target's own included; {block_size} drafts, all verified):

| | greedy | temperature 1 |
|---|---|---|
| from the distributions, at every place | {length_greedy:.2f} | {length_sampled:.2f} |
| **rounds of the engine**, {engine_prompts} of the prompts | **{engine_greedy:.2f}** | **{engine_sampled:.2f}** |

## Reproduce

`make drafter` writes the target's continuations, trains, exports and measures; each part goes on where it was
interrupted. `--minutes` is the budget of the training; writing the text takes about as long again on such a machine.

## Limits

It was trained for minutes on a share of two cores: the loss was still falling, and both more steps and more
continuations would help. It has seen sequences of {length} tokens only. Greedy text soon repeats itself, which flatters
the figures by place: an easy stretch holds many places and few rounds, so the engine's rounds are what counts. Drafts
of other text than Python source are poor, as is the target there. For the licence of what it has learnt from, see the
target's card.
"""


def cut(progress: float) -> str:
    """A sentence for a run that was exported before its schedule ended."""
    if progress >= 1:
        return ""
    return f"\n**The run was cut at {progress:.0%} of its schedule**: the rates had hardly decayed, and it shows."


def row(values: list[float]) -> str:
    return " | ".join(f"{value:.3f}" for value in values)


def drafter_card(results: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    shape, training, measured = results["model"], results["training"], results["measured"]
    cached, engine = measured["cached_numbers"], measured["engine_accepted_length"]
    greedy, sampled = measured["greedy"], measured["temperature_1"]
    minutes = training["seconds"] / 60
    parts = [
        HEAD.format(
            **shape,
            millions=shape["num_parameters"] / 1e6,
            megabytes=shape["bytes"] / 1e6,
            masks=shape["block_size"] - 1,
            drafter_numbers=cached["drafter"],
            target_numbers=cached["target"],
            carried=1 + cached["drafter"] / cached["target"],
        ),
        TRAINING.format(
            date=results["date"], machine=results["machine"], minutes=minutes, cut=cut(training["progress"]), **training
        ),
        QUALITY.format(
            **{key: measured[key] for key in ("prompts", "prompt_tokens", "written_tokens", "engine_prompts")},
            header=" | ".join(str(k + 1) for k in range(shape["block_size"])),
            rule="|".join(["---"] * shape["block_size"]),
            agreement=row(greedy["agreement"]),
            acceptance=row(sampled["acceptance"]),
            confidence=row(sampled["confidence"]),
            block_size=shape["block_size"],
            length_greedy=greedy["accepted_length"],
            length_sampled=sampled["accepted_length"],
            engine_greedy=engine["greedy"],
            engine_sampled=engine["temperature_1"],
            length=training["length"],
        ),
        f"\nVersions: {json.dumps(results['versions'])}\n",
    ]
    return "".join(parts)
