"""Measures a drafter as it is shipped (bfloat16 weights, computed in float32) on what its target says.

Prompts are from held-out files. Two texts follow them: the target's greedy one, and one sampled at temperature 1.

R = blocks, K = drafts of a block, V = vocabulary, N = anchors of a sequence, T = tokens of a sequence
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from engine.config import Config
from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from engine.types import Chunk, Request, Sampling, StopRules
from local import Builder, Pair
from train.batches import packed
from train.continuations import continue_prompts
from train.corpus import Corpus
from train.drafting import FrozenTarget, block_places, draft, new_drafter, tokens_at

PROMPTS, PROMPT_TOKENS, WRITTEN_TOKENS = 48, 128, 160
ENGINE_PROMPTS = 24
CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ShippedDrafter:
    """A drafter's folder beside its target, in the form of the training forward."""

    model: DSparkModel
    target: FrozenTarget

    @classmethod
    def load(cls, folder: Path, target: Path) -> ShippedDrafter:
        config, raw = DrafterConfig.load(folder)
        model = new_drafter(raw, config, std=0.02)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return cls(model.eval().requires_grad_(False), FrozenTarget.load(target, config.target_layer_ids))


@dataclass(frozen=True)
class Comparison:
    """Drafts against the target, each told the tokens before it: one row for each anchor."""

    acceptance_RK: Tensor  # 1 - TV of the two distributions
    survival_RK: Tensor  # whether draft and target have the same best token, or min(1, q / p) of the text's token
    confidence_RK: Tensor


@torch.inference_mode()
def compared(drafter: ShippedDrafter, text_BT: Tensor, first: int, greedy: bool) -> Comparison:
    """At every anchor from `first` on whose block lies inside the text."""
    found = [_compared(drafter, row_T[None], first, greedy) for row_T in text_BT]
    fields = ((c.acceptance_RK, c.survival_RK, c.confidence_RK) for c in found)
    return Comparison(*(torch.cat(parts) for parts in zip(*fields, strict=True)))


def _compared(drafter: ShippedDrafter, text_1T: Tensor, first: int, greedy: bool) -> Comparison:
    block_size = drafter.model.config.block_size
    anchor_1N = torch.arange(first, text_1T.shape[1] - block_size)[None]
    place_RK = block_places(anchor_1N, block_size)[0]
    taps, final_1TD = drafter.target(text_1T)
    p_RKV = drafter.target.logits(final_1TD).softmax(-1)[0][place_RK]
    drafted = draft(drafter.model, drafter.target, taps, text_1T, anchor_1N)
    q_RKV = drafted.logits_BNKV[0].softmax(-1)
    if greedy:
        survival_RK = (q_RKV.argmax(-1) == p_RKV.argmax(-1)).float()
    else:
        label_RK1 = tokens_at(text_1T, place_RK[None] + 1)[0][..., None]
        survival_RK = (q_RKV.gather(-1, label_RK1) / p_RKV.gather(-1, label_RK1)).clamp(max=1)[..., 0]
    assert drafted.confidence_BNK is not None
    return Comparison(1 - 0.5 * (p_RKV - q_RKV).abs().sum(-1), survival_RK, drafted.confidence_BNK[0].sigmoid())


def accepted_length(survival_RK: Tensor) -> float:
    """Tokens that a round gives, the target's own included: 1 + the sum over k of P(drafts 1 .. k are accepted).

    On text drawn from p, the mean of the product of min(1, q / p) is the probability that rejection sampling accepts
    that far: sum over x of min(p, q) (Leviathan et al. 2023, section 3.2).
    """
    return 1 + float(survival_RK.cumprod(dim=1).sum(dim=1).mean())


def in_the_engine(folder: Path, target: Path, prompts: list[tuple[int, ...]], block_size: int) -> dict[str, float]:
    """Tokens per round of the engine itself, one request at a time, every draft verified."""
    decode = {"cache_bytes": CACHE_BYTES, "planner": "fixed", "fixed_drafts": block_size}
    config = Config.parse(
        {
            "model": {"path": target, "drafter": folder},
            "prefill": {"cache_bytes": CACHE_BYTES},
            "decode": {"default": decode},
        }
    )
    pair = Pair(config, builder=Builder(config, config.prefill))
    lengths = {}
    for name, sampling in (("greedy", Sampling()), ("temperature_1", Sampling(temperature=1.0, seed=1))):
        rounds = [_rounds(pair, f"{name}-{i}", prompt, sampling) for i, prompt in enumerate(prompts)]
        lengths[name] = float(np.mean([size for sizes in rounds for size in sizes]))
    return lengths


def _rounds(pair: Pair, name: str, prompt: tuple[int, ...], sampling: Sampling) -> Iterator[int]:
    """Tokens of each round but the first (prefill's) and the last (cut by the limit)."""
    stop = StopRules(max_tokens=WRITTEN_TOKENS, ignore_eos=True)
    chunks: list[Chunk] = list(pair.stream(Request(id=name, prompt=prompt, sampling=sampling, stop=stop)))
    yield from (len(chunk.tokens) for chunk in chunks[1:-1])


def by_draft(values_RK: Tensor) -> list[float]:
    return [float(value) for value in values_RK.mean(dim=0)]


def numbers_per_token(target: Path, folder: Path) -> dict[str, int]:
    """What target and drafter cache of each token."""
    config = Config.parse({"model": {"path": target, "drafter": folder}})
    layout = Builder(config, config.prefill)
    sizes = {"target": 0, "drafter": 0}
    assert layout.drafter is not None
    for entry in (*layout.model.entries, *layout.drafter.entries):
        sizes[entry.part] += int(np.prod(entry.shape))
    return sizes


def evaluate_drafter(folder: Path, target: Path, corpus: Corpus) -> dict[str, Any]:
    """Everything that the drafter's card reports about quality."""
    drafter = ShippedDrafter.load(folder, target)
    tokens = packed(AutoTokenizer.from_pretrained(target), corpus.held_out)
    starts = np.linspace(0, len(tokens) - PROMPT_TOKENS, PROMPTS).astype(int)
    prompts = np.stack([tokens[start : start + PROMPT_TOKENS] for start in starts]).astype(np.int64)
    figures: dict[str, Any] = {}
    for name, temperature in (("greedy", 0.0), ("temperature_1", 1.0)):
        temperature_B = torch.full((PROMPTS,), temperature)
        text_BT = continue_prompts(
            drafter.target.model, torch.from_numpy(prompts), PROMPT_TOKENS + WRITTEN_TOKENS, temperature_B, seed=2**31
        )
        comparison = compared(drafter, text_BT, PROMPT_TOKENS - 1, greedy=temperature == 0)
        figures[name] = {
            "blocks": len(comparison.acceptance_RK),
            "agreement" if temperature == 0 else "token_acceptance": by_draft(comparison.survival_RK),
            "acceptance": by_draft(comparison.acceptance_RK),
            "confidence": by_draft(comparison.confidence_RK),
            "accepted_length": accepted_length(comparison.survival_RK),
        }
    some = [tuple(int(t) for t in prompt) for prompt in prompts[:: PROMPTS // ENGINE_PROMPTS]]
    return figures | {
        "engine_accepted_length": in_the_engine(folder, target, some, drafter.model.config.block_size),
        "prompts": PROMPTS,
        "engine_prompts": len(some),
        "prompt_tokens": PROMPT_TOKENS,
        "written_tokens": WRITTEN_TOKENS,
        "cached_numbers": numbers_per_token(target, folder),
    }
