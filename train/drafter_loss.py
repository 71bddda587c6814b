"""DSpark's training objective, and how much of a draft would be accepted.

Per row: 0.1 cross-entropy + 0.9 L1 + 1.0 binary cross-entropy of the confidence, weighted by exp(-(k - 1) / 4) for
draft k and divided by the sum of all weights (DeepSpec, loss.py). L1 is the full sum |p - q|, twice the total
variation. The confidence's label is the analytic acceptance 1 - 0.5 * L1, not differentiated.

R = blocks, K = drafts of a block, V = vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CROSS_ENTROPY, L1, CONFIDENCE = 0.1, 0.9, 1.0
POSITION_DECAY = 4.0


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimised; the parts are weighted by position alone; `acceptance_K` is 1 - TV by draft."""

    total: Tensor
    cross_entropy: Tensor
    l1: Tensor
    confidence: Tensor
    acceptance_K: Tensor


def position_weights(block_size: int) -> Tensor:
    """[K]"""
    return torch.exp(-torch.arange(block_size) / POSITION_DECAY)


def losses(logits_RKV: Tensor, probs_RKV: Tensor, label_RK: Tensor, confidence_RK: Tensor | None) -> Losses:
    """Of the drafter's `logits` against the target's `probs` at the same places, and the sequence's tokens there."""
    log_q_RKV = logits_RKV.float().log_softmax(dim=-1)
    cross_entropy_RK = -log_q_RKV.gather(-1, label_RK[..., None])[..., 0]
    l1_RK = (log_q_RKV.exp() - probs_RKV).abs().sum(dim=-1)
    acceptance_RK = 1 - 0.5 * l1_RK.detach()
    confidence_loss_RK = torch.zeros_like(l1_RK)
    if confidence_RK is not None:
        confidence_loss_RK = functional.binary_cross_entropy_with_logits(
            confidence_RK.float(), acceptance_RK.clamp(0, 1), reduction="none"
        )
    weight_RK = position_weights(label_RK.shape[1]).to(l1_RK).expand_as(l1_RK)

    def mean(values_RK: Tensor) -> Tensor:
        return (weight_RK * values_RK).sum() / weight_RK.sum()

    cross_entropy, l1, confidence = mean(cross_entropy_RK), mean(l1_RK), mean(confidence_loss_RK)
    total = CROSS_ENTROPY * cross_entropy + L1 * l1 + CONFIDENCE * confidence
    return Losses(total, cross_entropy.detach(), l1.detach(), confidence.detach(), acceptance_RK.mean(dim=0))
