"""The training loop of a DSpark drafter for a frozen target, shared by any number of workers.

A step's sequences and anchors depend on the seed and the step's number alone, so every worker knows all of them,
computes its own share of the sequences, and divides by the weight of all: gradients are then summed over the workers.

B = sequences of a step, T = tokens of the longest, N = anchors of a sequence, K = drafts of a block, R = B * N * K
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from engine.drafters.dspark import DSparkModel
from train.drafter.blocks import Blocks, draft, new_drafter
from train.drafter.config import JsonObject, TrainingSection
from train.drafter.features import Features
from train.drafter.loss import DraftLosses, Labels, LossWeights, Vocabulary, losses
from train.drafter.sequences import Sequences
from train.drafter.shape import parse_config
from train.drafter.target import FrozenTarget
from train.drafter.workers import Workers
from train.optimizers import Muon, ParameterGroup, ScheduledOptimizers

INITIAL_STD = 0.02
LOSS_NAMES = ("loss", "cross_entropy", "l1", "confidence", "acceptance")
Figures = dict[str, float]


@dataclass(frozen=True)
class StepSample:
    """The numbers of a step's sequences, and their anchors, which ascend.

    A sequence too short for N different anchors repeats its last one, with weight 0.
    """

    numbers: list[int]
    anchor_BN: Tensor
    weight_BNK: Tensor


def sample_step(text: Sequences, section: TrainingSection, block_size: int, step: int) -> StepSample:
    """Draw the sequences and anchors of `step`, with weights that add up to 1.

    An anchor is a token that the target generated, or the text's first token, and at least one token follows it. Drafts
    after the end of the sequence have weight 0.
    """
    generator = np.random.default_rng((section.seed, step))
    numbers = generator.choice(len(text), section.sequences, replace=len(text) < section.sequences)
    offsets = np.arange(block_size)
    anchors, weights = [], []
    for number in numbers:
        first, end = max(1, int(text.first_N[number])), int(text.end_N[number])
        found = np.sort(generator.permutation(np.arange(first, end - 1))[: section.anchors])
        missing = section.anchors - len(found)
        found = np.concatenate([found, np.full(missing, found[-1] if len(found) else 1)])
        weight_NK = np.exp(-offsets / section.losses.position_decay) * (found[:, None] + 1 + offsets < end)
        weight_NK[section.anchors - missing :] = 0
        anchors.append(found)
        weights.append(weight_NK)
    weight_BNK = torch.from_numpy(np.stack(weights))
    total = weight_BNK.sum()
    return StepSample(numbers.tolist(), torch.from_numpy(np.stack(anchors)), (weight_BNK / total).float())


def optimizers(model: DSparkModel, section: TrainingSection) -> ScheduledOptimizers:
    """Give the backbone's matrices to the chosen optimizer; Markov head, norms and confidence head to AdamW."""
    matrices = ParameterGroup([], section.rate)
    markov, vectors = ParameterGroup([], section.markov_rate), ParameterGroup([], section.vector_rate)
    for name, parameter in model.named_parameters():
        if "markov_head" in name:
            markov.parameters.append(parameter)
        elif parameter.ndim == 1 or "confidence_head" in name:
            vectors.parameters.append(parameter)
        else:
            matrices.parameters.append(parameter)
    if section.optimizer == "muon":
        muon = Muon(matrices.parameters, section.rate, dtype=section.torch_dtype)
        return ScheduledOptimizers(muon, [markov, vectors])
    return ScheduledOptimizers(None, [markov, vectors, matrices])


class DrafterTrainer:
    """One run of `section.steps` steps, of which `steps` are done."""

    def __init__(
        self,
        section: TrainingSection,
        raw: JsonObject,
        target: FrozenTarget,
        text: Sequences,
        features: Features,
        workers: Workers,
    ) -> None:
        """Start from the seed's initial weights. `raw` is the drafter's config.json."""
        self.section, self.target, self.text, self.features, self.workers = section, target, text, features, workers
        self.steps, self.seconds, self.tokens = 0, 0.0, 0
        torch.manual_seed(section.seed)
        self.model = new_drafter(raw, parse_config(raw), INITIAL_STD).to(section.device)
        self.optimizers = optimizers(self.model, section)

    def train(self) -> Iterator[Figures]:
        """Run the remaining steps and yield the figures of each."""
        while self.steps < self.section.steps:
            began = time.monotonic()
            figures = self.step()
            self.seconds += time.monotonic() - began
            yield {"step": self.steps, "seconds": self.seconds} | figures

    def step(self) -> Figures:
        """Update the weights with one batch."""
        rate = self.section.rate_at(self.steps)
        self.optimizers.set_rates(rate)
        sample = sample_step(self.text, self.section, self.model.config.block_size, self.steps)
        figures = self.learn(sample)
        figures["norm"] = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.section.clip))
        figures["rate"] = rate
        self.optimizers.step()
        self.steps += 1
        self.tokens += sum(int(self.text.end_N[number]) for number in sample.numbers)
        return figures

    def learn(self, sample: StepSample) -> Figures:
        """Compute the gradients of one batch; return its losses and the weighted acceptance."""
        mine = self.workers.share(len(sample.numbers))
        figures = torch.zeros(len(LOSS_NAMES), dtype=torch.float64)
        if mine:
            found = self._losses(sample, mine)
            torch.autograd.backward(found.total)
            accepted = float((sample.weight_BNK[mine].flatten() * found.acceptance_R.cpu()).sum())
            parts = (found.total.detach(), found.cross_entropy, found.l1, found.confidence, accepted)
            figures = torch.tensor([float(part) for part in parts], dtype=torch.float64)
        self.workers.add_gradients(self.model)
        self.workers.add(figures)
        return dict(zip(LOSS_NAMES, figures.tolist(), strict=True))

    def _losses(self, sample: StepSample, mine: list[int]) -> DraftLosses:
        section, device = self.section, torch.device(self.section.device)
        numbers = [sample.numbers[i] for i in mine]
        state_BTF = pad_sequence([s.to(device) for s in self.features.states(numbers)], batch_first=True).float()
        token_BT = pad_sequence([torch.tensor(self.text.tokens(n)) for n in numbers], batch_first=True).to(device)
        blocks = Blocks(token_BT, sample.anchor_BN[mine].to(device), self.model.config.block_size)
        labels = Labels(
            final_RD=blocks.at(state_BTF[..., -self.target.hidden_size :]),
            token_R=blocks.at(token_BT, ahead=1),
            weight_R=sample.weight_BNK[mine].flatten().to(device),
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=section.dtype == "bfloat16"):
            drafted = draft(self.model, self.target, state_BTF, blocks)
        head = self.model.markov_head
        weights = section.losses
        return losses(
            drafted.hidden_RD,
            drafted.markov_RM,
            drafted.confidence_R,
            labels,
            Vocabulary(self.target.head_VD, None if head is None else head.markov_w2.weight, section.torch_dtype),
            LossWeights(weights.cross_entropy, weights.l1, weights.confidence, weights.labels == "distribution"),
        )

    def state(self) -> JsonObject:
        """Return all that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state(),
            "progress": {"steps": self.steps, "seconds": self.seconds, "tokens": self.tokens},
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from the `state()` of an earlier run."""
        self.model.load_state_dict(state["model"])
        self.optimizers.restore(state["optimizers"])
        progress = state["progress"]
        self.steps, self.seconds, self.tokens = progress["steps"], progress["seconds"], progress["tokens"]
