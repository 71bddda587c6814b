"""The tiny DeepSeek-V3 model: its configuration and its training loop.

The model is transformers' own; the attention kernel, the experts' balance and the optimizers are ours.
B rows, T tokens, D hidden size, V vocabulary.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from engine.drafters.mtp import MTPLayer
from engine.files import atomic_write
from train.batches import Batches
from train.model.attention import ATTENTION
from train.model.balance import ExpertBalance
from train.model.mtp import initialise, mtp_states
from train.optimizers import Muon, ParameterGroup, ScheduledOptimizers
from train.tokenizer import VOCAB_SIZE


def tiny_config() -> DeepseekV3Config:
    """Return DeepSeek-V3's architecture at 9 million parameters (10.8 with the MTP layer)."""
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
    """A part of the training with rows of one length; it ends at the share `until` of the budget."""

    until: float
    length: int
    rows: int


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run. Its budget is wall-clock minutes or, if `tokens` is given, tokens."""

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

    def stage(self, done: float) -> Stage:
        return next(stage for stage in self.stages if done < stage.until)

    def rate(self, done: float, step: int) -> float:
        """Return the factor on every learning rate: warm-up, constant, linear decay."""
        decay = (1 - done) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warm_up_steps) * max(self.final_rate, min(1.0, decay))


@dataclass
class TrainingProgress:
    """The progress of a run; checkpoints keep it."""

    steps: int = 0
    tokens: int = 0
    mtp_tokens: int = 0
    seconds: float = 0.0
    tokens_by_length: dict[int, int] = field(default_factory=dict)
    budgets: list[float] = field(default_factory=list)  # minutes or tokens; more than one if the run was extended

    def share_of(self, recipe: Recipe) -> float:
        """Return the share of the recipe's budget that is spent."""
        if recipe.tokens is not None:
            return self.tokens / recipe.tokens
        return self.seconds / (60 * recipe.minutes)

    def count(self, stage: Stage, num_tokens: int, with_mtp: bool) -> None:
        """Add one step."""
        self.steps += 1
        self.tokens += num_tokens
        self.mtp_tokens += num_tokens if with_mtp else 0
        self.tokens_by_length[stage.length] = self.tokens_by_length.get(stage.length, 0) + num_tokens


def optimizers(modules: nn.Module, recipe: Recipe) -> ScheduledOptimizers:
    """Give the layers' matrices to Muon; embedding, head, routers and norms to AdamW."""
    matrices: list[nn.Parameter] = []
    embeddings = ParameterGroup([], recipe.embedding_rate, recipe.weight_decay)
    vectors, routers = ParameterGroup([], recipe.vector_rate), ParameterGroup([], recipe.router_rate)
    halves: set[int] = set()
    for name, parameter in modules.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            embeddings.parameters.append(parameter)
        elif name.endswith("gate.weight"):
            routers.parameters.append(parameter)
        elif parameter.ndim == 1:
            vectors.parameters.append(parameter)
        else:
            matrices.append(parameter)
            if name.endswith("gate_up_proj"):
                halves.add(id(parameter))
    muon = Muon(matrices, recipe.matrix_rate, weight_decay=recipe.weight_decay, halves=frozenset(halves))
    return ScheduledOptimizers(muon, [embeddings, vectors, routers])


class Trainer:
    """One run: `train()` until the budget is spent, with checkpoints from which a later run continues."""

    def __init__(self, recipe: Recipe, batches: Batches, folder: Path, device: str = "cpu") -> None:
        self.recipe, self.batches, self.checkpoint = recipe, batches, folder / "checkpoint.pt"
        self.device = torch.device(device)
        self.progress = TrainingProgress()
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
        self.optimizers = optimizers(self.modules, recipe)

    def train(self, report: Callable[[dict[str, float]], None]) -> None:
        """Run steps until the budget is spent, from the checkpoint if there is one."""
        self.restore()
        progress, budget = self.progress, self.recipe.tokens or self.recipe.minutes
        if budget not in progress.budgets:
            progress.budgets.append(budget)
        started, saved = time.monotonic() - progress.seconds, time.monotonic()
        while progress.share_of(self.recipe) < 1:
            figures = self.step()
            progress.seconds = time.monotonic() - started
            done = progress.share_of(self.recipe)
            report(figures | {"step": progress.steps, "tokens": progress.tokens, "progress": done})
            if time.monotonic() - saved > self.recipe.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def step(self) -> dict[str, float]:
        """Update the weights with one batch.

        Losses are in nats per token; `load` is the load of the busiest expert over the mean.
        """
        done = self.progress.share_of(self.recipe)
        stage, rate = self.recipe.stage(done), self.recipe.rate(done, self.progress.steps)
        self.optimizers.set_rates(rate)
        tokens_BT = self.batches.next(stage.rows, stage.length + 1).to(self.device)
        parts = torch.split(tokens_BT, max(1, self.recipe.part_tokens // stage.length))
        with_mtp = done >= self.recipe.mtp_from
        losses = torch.stack([self._learn(part_BT, len(part_BT) / len(tokens_BT), with_mtp) for part_BT in parts])
        loss, mtp_loss = losses.sum(0).tolist()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        nn.utils.clip_grad_norm_(self.mtp.parameters(), self.recipe.clip)
        self.optimizers.step()
        self.progress.count(stage, tokens_BT[:, 1:].numel(), with_mtp)
        figures = {"loss": loss, "norm": float(norm), "load": self.balance.step(rate * self.recipe.balance_rate)}
        return figures | ({"mtp_loss": mtp_loss} if with_mtp else {})

    def _learn(self, tokens_BT: Tensor, share: float, with_mtp: bool) -> Tensor:
        """Add the gradients of one part of a batch and return its share of both losses, `[2]`.

        The MTP layer learns beside the main model and sends no gradient into it.
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

    def save(self) -> None:
        """Write all that a resumed run needs, atomically."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizers": self.optimizers.state(),
            "progress": asdict(self.progress),
            "batches": self.batches.state(),
        }
        with atomic_write(self.checkpoint) as partial:
            torch.save(state, partial)

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.optimizers.restore(state["optimizers"])
        self.progress = TrainingProgress(**state["progress"])
        self.batches.restore(state["batches"])
