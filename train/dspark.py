"""Training of a DSpark drafter for a frozen target: its configuration, its text and its loop.

B sequences, T tokens of a sequence, N anchors of a sequence, K drafts of a block, V vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from train.drafter_loss import losses
from train.drafting import FrozenTarget, block_places, draft, new_drafter, tokens_at
from train.muon import Muon

ARCHITECTURES = {"deepseek_v3": "DeepseekV3DSparkModel", "qwen3": "Qwen3DSparkModel"}
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True)
class Shape:
    """What of a drafter does not follow from its target. `backbone` goes over the target's own keys."""

    num_layers: int = 2
    tap_layers: tuple[int, ...] = (0, 2, 3)
    block_size: int = 7
    mask_token_id: int = 1  # the tokenizer's PAD, which no text contains
    markov_rank: int = 128
    markov_head_type: str = "vanilla"
    backbone: dict[str, Any] = field(default_factory=dict)


# A page's drafter part must stay small beside the target's 5 x (64 + 16) numbers per token: 2 x (32 + 16).
TINY_MLA_SHAPE = Shape(
    backbone={"kv_lora_rank": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
)


def drafter_config(target: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The drafter's config.json: a copy of its target's, and DSpark's own keys."""
    inherited = {key: value for key, value in target.items() if key not in MTP_KEYS}
    own = {
        "architectures": [ARCHITECTURES[target["model_type"]]],
        "num_target_layers": target["num_hidden_layers"],
        "num_hidden_layers": shape.num_layers,
        "layer_types": ["full_attention"] * shape.num_layers,
        "block_size": shape.block_size,
        "mask_token_id": shape.mask_token_id,
        "target_layer_ids": list(shape.tap_layers),
        "num_anchors": Recipe.anchors,
        "enable_confidence_head": True,
        "confidence_head_with_markov": shape.markov_rank > 0,
        "markov_rank": shape.markov_rank,
        "markov_head_type": shape.markov_head_type,
        "tie_word_embeddings": False,
    }
    if target["model_type"] == "deepseek_v3":
        own["first_k_dense_replace"] = shape.num_layers
    return {**inherited, **own, **shape.backbone}


@dataclass(frozen=True)
class Recipe:
    """What a run does. The budget is wall-clock minutes or, where `steps` is given, steps."""

    minutes: float = 40.0
    steps: int | None = None
    rows: int = 12
    anchors: int = 40
    corpus_share: float = 0.25
    warm_up_steps: int = 30
    final_rate: float = 0.02
    matrix_rate: float = 0.02
    embedding_rate: float = 4e-3
    vector_rate: float = 2e-3
    clip: float = 1.0
    bfloat16: bool = True
    initial_std: float = 0.02
    checkpoint_seconds: float = 180.0
    seed: int = 0

    def rate(self, progress: float, step: int) -> float:
        """Factor on every learning rate: warm-up, then half a cosine down to `final_rate`."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return min(1.0, (step + 1) / self.warm_up_steps) * (self.final_rate + (1 - self.final_rate) * cosine)


@dataclass(frozen=True)
class Sequences:
    """The text: rows that the target wrote, `uint16[rows, T]`, and a ring of the corpus, `uint16[tokens]`."""

    written: np.ndarray
    corpus: np.ndarray

    def pick(self, rows: int, corpus_share: float, generator: np.random.Generator) -> Tensor:
        """`int64[rows, T]`, each row from the corpus with probability `corpus_share`."""
        length, picked = self.written.shape[1], []
        for _ in range(rows):
            if generator.random() < corpus_share:
                start = generator.integers(len(self.corpus))
                picked.append(self.corpus.take(np.arange(start, start + length), mode="wrap"))
            else:
                picked.append(self.written[generator.integers(len(self.written))])
        return torch.from_numpy(np.stack(picked).astype(np.int64))


def pick_anchors(shape: tuple[int, int], count: int, block_size: int, generator: np.random.Generator) -> Tensor:
    """`count` different places of each row of `shape`, with context before them and labels for a whole block. [B, N]"""
    rows, length = shape
    places = np.arange(1, length - block_size)
    return torch.from_numpy(np.stack([np.sort(generator.permutation(places)[:count]) for _ in range(rows)]))


def optimizers(model: DSparkModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the backbone's matrices; AdamW for the heads and the norms."""
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if "markov_w" in name:
            embeddings.append(parameter)
        elif parameter.ndim == 1 or "confidence_head" in name:
            vectors.append(parameter)
        else:
            matrices.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "lr": recipe.embedding_rate},
        {"params": vectors, "lr": recipe.vector_rate},
    ]
    adam = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    found: list[torch.optim.Optimizer] = [Muon(matrices, recipe.matrix_rate), adam]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


class DrafterTrainer:
    """One run: `train()` until the budget is spent, with checkpoints from which it goes on."""

    def __init__(
        self, recipe: Recipe, config: dict[str, Any], target: FrozenTarget, sequences: Sequences, folder: Path
    ) -> None:
        self.recipe, self.config, self.target, self.sequences = recipe, config, target, sequences
        self.checkpoint = folder / "drafter.pt"
        self.steps, self.seconds, self.blocks = 0, 0.0, 0
        torch.manual_seed(recipe.seed)
        checked = DrafterConfig.model_validate(
            {**config, "architecture": config["architectures"][0], "model_type": config["model_type"]}
        )
        self.model = new_drafter(config, checked, recipe.initial_std)
        self.optimizers = optimizers(self.model, recipe)

    @property
    def progress(self) -> float:
        if self.recipe.steps is not None:
            return self.steps / self.recipe.steps
        return self.seconds / (60 * self.recipe.minutes)

    def train(self, report: Callable[[dict[str, float]], None]) -> None:
        """Steps until the budget is spent, going on from the checkpoint where there is one."""
        self.restore()
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        while self.progress < 1:
            figures = self.step()
            self.seconds = time.monotonic() - started
            report({"step": self.steps, "progress": self.progress} | figures)
            if time.monotonic() - saved > self.recipe.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def step(self) -> dict[str, float]:
        """One batch, one update. What is picked depends on the seed and the step's number alone."""
        recipe, generator = self.recipe, np.random.default_rng((self.recipe.seed, self.steps))
        rate = recipe.rate(self.progress, self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        tokens_BT = self.sequences.pick(recipe.rows, recipe.corpus_share, generator)
        block_size = self.model.config.block_size
        anchor_BN = pick_anchors((len(tokens_BT), tokens_BT.shape[1]), recipe.anchors, block_size, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            figures = self.learn(tokens_BT, anchor_BN)
        figures["norm"] = float(nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.blocks += anchor_BN.numel()
        return figures

    def learn(self, tokens_BT: Tensor, anchor_BN: Tensor) -> dict[str, float]:
        """Adds the gradients of one batch; its losses, and the acceptance of the first and of all drafts."""
        place_BNK = block_places(anchor_BN, self.model.config.block_size)
        taps, final_BTD = self.target(tokens_BT)
        with torch.no_grad():
            row_B11 = torch.arange(len(tokens_BT))[:, None, None]
            probs_BTV = self.target.logits(final_BTD).float().softmax(dim=-1)
            probs_RKV = probs_BTV[row_B11, place_BNK].flatten(0, 1)
        drafted = draft(self.model, self.target, taps, tokens_BT, anchor_BN)
        confidence_BNK = drafted.confidence_BNK
        found = losses(
            drafted.logits_BNKV.flatten(0, 1),
            probs_RKV,
            tokens_at(tokens_BT, place_BNK + 1).flatten(0, 1),
            None if confidence_BNK is None else confidence_BNK.flatten(0, 1),
        )
        torch.autograd.backward(found.total)
        return {
            "loss": float(found.total.detach()),
            "cross_entropy": float(found.cross_entropy),
            "l1": float(found.l1),
            "confidence": float(found.confidence),
            "first": float(found.acceptance_K[0]),
            "all": float(found.acceptance_K.mean()),
        }

    def save(self) -> None:
        """Writes everything a resumed run needs, atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "steps": self.steps,
            "seconds": self.seconds,
            "blocks": self.blocks,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def restore(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps, self.seconds, self.blocks = state["steps"], state["seconds"], state["blocks"]


def export_drafter(model: DSparkModel, config: dict[str, Any], folder: Path) -> None:
    """config.json and bfloat16 weights, without copies of the target's embedding and head."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / ".model.partial"
    save_file(tensors, partial, {"format": "pt"})
    partial.chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    os.replace(partial, folder / "model.safetensors")
