"""Training of a DSpark drafter for a frozen target: the loop, which any number of workers share.

A step's sequences and anchors depend on the seed and the step's number alone, so every worker knows all of them,
computes its own share of the sequences, and divides by the weight of all: gradients need only be added up.

B = sequences of a step, T = tokens of the longest, N = anchors of a sequence, K = drafts of a block, R = B * N * K
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from train.blocks import Blocks, draft, new_drafter
from train.drafter_config import TrainingSection
from train.drafter_loss import Labels, Losses, Shares, Vocabulary, losses
from train.features import Features
from train.muon import Muon
from train.sequences import Sequences
from train.target import Target
from train.workers import Workers

INITIAL_STD = 0.02
Figures = dict[str, float]


@dataclass(frozen=True)
class Picked:
    """A step's sequences, by number, and their anchors [B, N], which ascend. A sequence too short for N different
    anchors repeats its last one, with weight 0."""

    numbers: list[int]
    anchor_BN: Tensor
    weight_BNK: Tensor


def pick(text: Sequences, section: TrainingSection, block_size: int, step: int) -> Picked:
    """What `step` learns from. Weights add up to 1.

    An anchor lies where the target speaks, or is the text's first token, and has at least one token behind it to be
    drafted. A block's drafts count up to its sequence's end.
    """
    generator = np.random.default_rng((section.seed, step))
    numbers = generator.choice(len(text), section.sequences, replace=len(text) < section.sequences)
    places = np.arange(block_size)
    anchors, weights = [], []
    for number in numbers:
        first, end = max(1, int(text.first_N[number])), int(text.end_N[number])
        found = np.sort(generator.permutation(np.arange(first, end - 1))[: section.anchors])
        missing = section.anchors - len(found)
        found = np.concatenate([found, np.full(missing, found[-1] if len(found) else 1)])
        weight_NK = np.exp(-places / section.losses.position_decay) * (found[:, None] + 1 + places < end)
        weight_NK[section.anchors - missing :] = 0
        anchors.append(found)
        weights.append(weight_NK)
    weight_BNK = torch.from_numpy(np.stack(weights))
    total = weight_BNK.sum()
    return Picked(numbers.tolist(), torch.from_numpy(np.stack(anchors)), (weight_BNK / total).float())


def optimizers(model: DSparkModel, section: TrainingSection) -> list[torch.optim.Optimizer]:
    """The backbone's matrices have the chosen optimizer; the Markov head, norms and the confidence head AdamW."""
    matrices: list[nn.Parameter] = []
    markov: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if "markov_head" in name:
            markov.append(parameter)
        elif parameter.ndim == 1 or "confidence_head" in name:
            vectors.append(parameter)
        else:
            matrices.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": markov, "lr": section.markov_rate},
        {"params": vectors, "lr": section.vector_rate},
    ]
    found: list[torch.optim.Optimizer] = []
    if section.optimizer == "muon":
        found.append(Muon(matrices, section.rate, dtype=section.torch_dtype))
    else:
        groups.append({"params": matrices, "lr": section.rate})
    groups = [group for group in groups if group["params"]]
    found.append(torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


class DrafterTrainer:
    """One run, up to `section.steps`. `steps` are those done."""

    def __init__(
        self,
        section: TrainingSection,
        raw: dict[str, Any],
        target: Target,
        text: Sequences,
        features: Features,
        workers: Workers,
    ) -> None:
        """`raw` is the drafter's config.json."""
        self.section, self.target, self.text, self.features, self.workers = section, target, text, features, workers
        self.steps, self.seconds, self.tokens = 0, 0.0, 0
        torch.manual_seed(section.seed)
        config = DrafterConfig.model_validate(
            {**raw, "architecture": raw["architectures"][0], "model_type": raw["model_type"]}
        )
        self.model = new_drafter(raw, config, INITIAL_STD).to(section.device)
        self.optimizers = optimizers(self.model, section)

    def train(self) -> Iterator[Figures]:
        """The steps that are left, one after the other."""
        while self.steps < self.section.steps:
            began = time.monotonic()
            figures = self.step()
            self.seconds += time.monotonic() - began
            yield {"step": self.steps, "seconds": self.seconds} | figures

    def step(self) -> Figures:
        """One batch, one update."""
        rate = self.section.rate_at(self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        picked = pick(self.text, self.section, self.model.config.block_size, self.steps)
        figures = self.learn(picked)
        figures["norm"] = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.section.clip))
        figures["rate"] = rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.tokens += sum(int(self.text.end_N[number]) for number in picked.numbers)
        return figures

    def learn(self, picked: Picked) -> Figures:
        """Leaves the gradients of one batch in the model; the batch's losses, and the weighted acceptance."""
        mine = self.workers.share(len(picked.numbers))
        figures = torch.zeros(5, dtype=torch.float64)
        if mine:
            found = self._losses(picked, mine)
            torch.autograd.backward(found.total)
            accepted = float((picked.weight_BNK[mine].flatten() * found.acceptance_R.cpu()).sum())
            parts = (found.total.detach(), found.cross_entropy, found.l1, found.confidence, accepted)
            figures = torch.tensor([float(part) for part in parts], dtype=torch.float64)
        self.workers.add_gradients(self.model)
        self.workers.add(figures)
        names = ("loss", "cross_entropy", "l1", "confidence", "acceptance")
        return dict(zip(names, figures.tolist(), strict=True))

    def _losses(self, picked: Picked, mine: list[int]) -> Losses:
        section, device = self.section, torch.device(self.section.device)
        numbers = [picked.numbers[i] for i in mine]
        state_BTF = pad_sequence([s.to(device) for s in self.features.states(numbers)], batch_first=True).float()
        token_BT = pad_sequence([torch.tensor(self.text.tokens(n)) for n in numbers], batch_first=True).to(device)
        blocks = Blocks(token_BT, picked.anchor_BN[mine].to(device), self.model.config.block_size)
        labels = Labels(
            final_RD=blocks.at(state_BTF[..., -self.target.hidden_size :]),
            token_R=blocks.at(token_BT, ahead=1),
            weight_R=picked.weight_BNK[mine].flatten().to(device),
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=section.dtype == "bfloat16"):
            drafted = draft(self.model, self.target, state_BTF, blocks)
        head: Any = self.model.markov_head
        shares = section.losses
        return losses(
            drafted.hidden_RD,
            drafted.markov_RM,
            drafted.confidence_R,
            labels,
            Vocabulary(self.target.head_VD, None if head is None else head.markov_w2.weight, section.torch_dtype),
            Shares(shares.cross_entropy, shares.l1, shares.confidence, shares.labels == "distribution"),
        )

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {"steps": self.steps, "seconds": self.seconds, "tokens": self.tokens},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()` of an earlier run."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress = state["progress"]
        self.steps, self.seconds, self.tokens = progress["steps"], progress["seconds"], progress["tokens"]
