"""The tiny DeepSeek-V3 model: its configuration and its training loop.

The model is transformers' own; ours are the attention kernel's choice, the experts' balance and the optimiser.
B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from engine.drafters.mtp import MTPLayer
from train.attention import ATTENTION
from train.balance import ExpertBalance
from train.batches import Batches
from train.mtp import initialise, mtp_states
from train.muon import Muon
from train.tokenizer import VOCAB_SIZE


def tiny_config() -> DeepseekV3Config:
    """DeepSeek-V3's architecture at 9 million parameters (10.8 with the MTP layer)."""
    return DeepseekV3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=5,
        intermediate_size=704,
        first_k_dense_replace=1,
        moe_intermediate_size=192,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        num_attention_heads=8,
        num_key_value_heads=8,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        num_mtp_layers=1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


@dataclass(frozen=True)
class Stage:
    """Rows of one length, up to a share of the budget."""

    until: float
    length: int
    rows: int


@dataclass(frozen=True)
class Recipe:
    """What a run does. The budget is wall-clock minutes or, where `tokens` is given, tokens."""

    minutes: float = 80.0
    tokens: int | None = None
    stages: tuple[Stage, ...] = (
        Stage(0.25, 256, 32),
        Stage(0.66, 512, 16),
        Stage(0.87, 2048, 4),
        Stage(math.inf, 8192, 1),
    )
    part_tokens: int = 4096
    warm_up_steps: int = 60
    decay_from: float = 0.5
    final_rate: float = 0.03
    mtp_from: float = 0.5
    matrix_rate: float = 0.02
    embedding_rate: float = 4e-3
    vector_rate: float = 2e-3
    router_rate: float = 3e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_rate: float = 1e-2
    checkpoint_seconds: float = 240.0
    seed: int = 0

    def stage(self, progress: float) -> Stage:
        return next(stage for stage in self.stages if progress < stage.until)

    def rate(self, progress: float, step: int) -> float:
        """Factor on every learning rate: warm-up, stable, linear decay."""
        decay = (1 - progress) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warm_up_steps) * max(self.final_rate, min(1.0, decay))


@dataclass
class Tally:
    """What a run has done so far."""

    steps: int = 0
    tokens: int = 0
    mtp_tokens: int = 0
    seconds: float = 0.0
    tokens_by_length: dict[int, int] = field(default_factory=dict)
    budgets: list[float] = field(default_factory=list)  # minutes or tokens; more than one if the run was extended

    def progress(self, recipe: Recipe) -> float:
        if recipe.tokens is not None:
            return self.tokens / recipe.tokens
        return self.seconds / (60 * recipe.minutes)


def optimizers(modules: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embedding, head, routers and norms."""
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    routers: list[nn.Parameter] = []
    halves: set[int] = set()
    for name, parameter in modules.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            embeddings.append(parameter)
        elif name.endswith("gate.weight"):
            routers.append(parameter)
        elif parameter.ndim == 1:
            vectors.append(parameter)
        else:
            matrices.append(parameter)
            if name.endswith("gate_up_proj"):
                halves.add(id(parameter))
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "lr": recipe.embedding_rate, "weight_decay": recipe.weight_decay},
        {"params": vectors, "lr": recipe.vector_rate, "weight_decay": 0.0},
        {"params": routers, "lr": recipe.router_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    muon = Muon(matrices, recipe.matrix_rate, weight_decay=recipe.weight_decay, halves=frozenset(halves))
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


class Trainer:
    """One run: `train()` until the budget is spent, with checkpoints from which it goes on."""

    def __init__(self, recipe: Recipe, batches: Batches, folder: Path, device: str = "cpu") -> None:
        self.recipe, self.batches, self.folder = recipe, batches, folder
        self.device = torch.device(device)
        self.tally = Tally()
        torch.manual_seed(recipe.seed)
        config = tiny_config()
        self.model = DeepseekV3ForCausalLM._from_config(
            config, attn_implementation=ATTENTION, experts_implementation="grouped_mm", dtype=torch.float32
        ).to(self.device)
        self.mtp = MTPLayer(self.model.config, self.model.config.num_hidden_layers)
        initialise(self.mtp, config.initializer_range)
        self.mtp.to(self.device)
        self.modules = nn.ModuleDict({"model": self.model, "mtp": self.mtp}).train()
        self.balance = ExpertBalance(self.modules)
        self.optimizers = [*optimizers(self.model, recipe), *optimizers(self.mtp, recipe)]

    @property
    def progress(self) -> float:
        return self.tally.progress(self.recipe)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def train(self, report: Callable[[dict[str, float]], None]) -> None:
        """Steps until the budget is spent, going on from the checkpoint where there is one."""
        self.restore()
        budget = self.recipe.tokens or self.recipe.minutes
        if budget not in self.tally.budgets:
            self.tally.budgets.append(budget)
        started, saved = time.monotonic() - self.tally.seconds, time.monotonic()
        while self.progress < 1:
            figures = self.step()
            self.tally.seconds = time.monotonic() - started
            report(figures | {"step": self.tally.steps, "tokens": self.tally.tokens, "progress": self.progress})
            if time.monotonic() - saved > self.recipe.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def step(self) -> dict[str, float]:
        """One batch, one update. Losses are nats per token; `load` is the busiest expert over the mean."""
        progress = self.progress
        stage = self.recipe.stage(progress)
        rate = self._set_rates(progress)
        tokens_BT = self.batches.next(stage.rows, stage.length + 1).to(self.device)
        parts = torch.split(tokens_BT, max(1, self.recipe.part_tokens // stage.length))  # type: ignore[no-untyped-call]
        with_mtp = progress >= self.recipe.mtp_from
        losses = torch.stack([self._learn(part_BT, len(part_BT) / len(tokens_BT), with_mtp) for part_BT in parts])
        loss, mtp_loss = losses.sum(0).tolist()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        nn.utils.clip_grad_norm_(self.mtp.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._count(stage, tokens_BT[:, 1:].numel(), with_mtp)
        figures = {
            "loss": loss,
            "norm": float(norm),
            "load": self.balance.step(rate * self.recipe.balance_rate),
            "progress": progress,
        }
        return figures | ({"mtp_loss": mtp_loss} if with_mtp else {})

    def _learn(self, tokens_BT: Tensor, share: float, with_mtp: bool) -> Tensor:
        """Adds the gradients of one part of a batch; its share of both losses, `[2]`.

        The MTP layer learns beside the main model, which feels nothing of it.
        """
        hidden_BTD = self.model.model(input_ids=tokens_BT[:, :-1], use_cache=False).last_hidden_state
        loss = (
            functional.cross_entropy(self.model.lm_head(hidden_BTD).flatten(0, 1), tokens_BT[:, 1:].flatten()) * share
        )
        torch.autograd.backward(loss)
        if not with_mtp:
            return torch.stack([loss.detach(), torch.zeros_like(loss)])
        states_BTD = mtp_states(self.model, self.mtp, tokens_BT[:, :-1], hidden_BTD)
        logits_BTV = functional.linear(states_BTD, self.model.lm_head.weight.detach())
        mtp_loss = functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 2:].flatten()) * share
        torch.autograd.backward(mtp_loss)
        return torch.stack([loss.detach(), mtp_loss.detach()])

    def _set_rates(self, progress: float) -> float:
        rate = self.recipe.rate(progress, self.tally.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        return rate

    def _count(self, stage: Stage, num_tokens: int, with_mtp: bool) -> None:
        self.tally.steps += 1
        self.tally.tokens += num_tokens
        self.tally.mtp_tokens += num_tokens if with_mtp else 0
        by_length = self.tally.tokens_by_length
        by_length[stage.length] = by_length.get(stage.length, 0) + num_tokens

    def save(self) -> None:
        """Writes everything a resumed run needs, atomically."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tally": self.tally,
            "batches": self.batches.state(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def restore(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=False)
        self.modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tally = state["tally"]
        self.batches.restore(state["batches"])


def parameter_counts(trainer: Trainer) -> Iterator[tuple[str, int]]:
    """Name and number of parameters of the main model and of the MTP layer."""
    yield "main model", sum(parameter.numel() for parameter in trainer.model.parameters())
    yield "MTP layer", sum(parameter.numel() for parameter in trainer.mtp.parameters())
