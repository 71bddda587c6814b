"""DSpark's training objective, and the expected acceptance of each draft.

Per row: 0.1 cross-entropy + 0.9 L1 + 1.0 binary cross-entropy of the confidence, weighted by exp(-(k - 1) / 4) for
draft k and divided by the sum of all weights (DeepSpec, loss.py). L1 is the full sum |p - q|, twice the total
variation. The confidence's label is the analytic acceptance 1 - 0.5 * L1, not differentiated. Cross-entropy is with the
text's tokens, as published, or with the target's distribution p at their positions, which carries more information.

Logits and their gradients are computed chunk by chunk: no tensor of the size (rows x vocabulary) exists.

R = rows of all blocks, D = hidden size, M = rank of the Markov head, V = vocabulary, C = rows of a chunk
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 256


@dataclass(frozen=True)
class Labels:
    """The targets of the loss. `final_RD` are the target's states (after the final norm) at their positions, from
    which its distributions follow; `token_R` are the sequence's tokens. `weight_R` is 0 where the sequence has ended;
    all weights of a step, over all workers, add up to 1."""

    final_RD: Tensor
    token_R: Tensor
    weight_R: Tensor


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss in the total. `soft`: cross-entropy with distributions, not with tokens."""

    cross_entropy: float
    l1: float
    confidence: float
    soft: bool = False


@dataclass(frozen=True)
class DraftLosses:
    """The `total` is minimised; the other losses are weighted by position alone. `acceptance_R` is 1 - TV."""

    total: Tensor
    cross_entropy: Tensor
    l1: Tensor
    confidence: Tensor
    acceptance_R: Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The projections from states to logits: the target's frozen head [V, D] for target and drafter, and the Markov
    head's W2 [V, M] for the drafter. The drafter's matrix products are computed in `dtype`."""

    head_VD: Tensor
    markov_VM: Tensor | None
    dtype: torch.dtype


def losses(
    hidden_RD: Tensor,
    markov_RM: Tensor | None,
    confidence_R: Tensor | None,
    labels: Labels,
    vocabulary: Vocabulary,
    weights: LossWeights,
) -> DraftLosses:
    """Compute the losses of the drafts whose logits follow from `hidden_RD` and `markov_RM`."""
    drafts, cross_entropy_R, l1_R = _FusedDraftLoss.apply(  # type: ignore[no-untyped-call]
        hidden_RD, markov_RM, vocabulary.markov_VM, labels, vocabulary, weights
    )
    acceptance_R = 1 - 0.5 * l1_R
    confidence = drafts.new_zeros(())
    if confidence_R is not None:
        confidence_loss_R = functional.binary_cross_entropy_with_logits(
            confidence_R.float(), acceptance_R.clamp(0, 1), reduction="none"
        )
        confidence = (labels.weight_R * confidence_loss_R).sum()
    return DraftLosses(
        total=drafts + weights.confidence * confidence,
        cross_entropy=(labels.weight_R * cross_entropy_R).sum(),
        l1=(labels.weight_R * l1_R).sum(),
        confidence=confidence.detach(),
        acceptance_R=acceptance_R,
    )


class _FusedDraftLoss(torch.autograd.Function):
    """The sum of weighted cross-entropy and L1 over all rows. The forward pass, which has the logits, also computes the
    gradients: with q = softmax(z), d CE / dz = q - p (or q - onehot), d L1 / dz = q (s - s.q), s = sign(q - p)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        markov_RM: Tensor | None,
        markov_VM: Tensor | None,
        labels: Labels,
        vocabulary: Vocabulary,
        weights: LossWeights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, size = vocabulary.dtype, hidden_RD.shape[1]
        input_RD, head_VD = hidden_RD.detach().to(dtype), vocabulary.head_VD.to(dtype)
        if markov_RM is not None and markov_VM is not None:
            input_RD = torch.cat([input_RD, markov_RM.detach().to(dtype)], dim=1)
            head_VD = torch.cat([head_VD, markov_VM.detach().to(dtype)], dim=1)
        grad_RD = torch.empty(input_RD.shape, dtype=torch.float32, device=input_RD.device)
        grad_VM = None if markov_VM is None else torch.zeros_like(markov_VM, dtype=torch.float32)
        cross_entropy_R, l1_R = (torch.empty_like(labels.weight_R) for _ in range(2))
        for first in range(0, len(input_RD), CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            p_CV = (labels.final_RD[rows].float() @ vocabulary.head_VD.T).softmax(dim=-1)
            log_q_CV = (input_RD[rows] @ head_VD.T).float().log_softmax(dim=-1)
            if not weights.soft:
                token_C1 = labels.token_R[rows, None]
                text_CV = torch.zeros_like(p_CV).scatter_(-1, token_C1, 1.0)
                cross_entropy_R[rows] = -log_q_CV.gather(-1, token_C1)[:, 0]
            else:
                text_CV = p_CV
                cross_entropy_R[rows] = -torch.linalg.vecdot(p_CV, log_q_CV)
            q_CV = log_q_CV.exp_()
            gap_CV = q_CV - p_CV
            l1_R[rows] = torch.linalg.vector_norm(gap_CV, ord=1, dim=-1)
            sign_CV = gap_CV.sign_()
            mean_C1 = torch.linalg.vecdot(sign_CV, q_CV)[:, None]
            slope_CV = sign_CV.sub_(mean_C1).mul_(weights.l1).add_(weights.cross_entropy).mul_(q_CV)
            slope_CV.sub_(text_CV, alpha=weights.cross_entropy)
            slope_CV = slope_CV.mul_(labels.weight_R[rows, None]).to(dtype)
            grad_RD[rows] = (slope_CV @ head_VD).float()
            if grad_VM is not None:
                grad_VM += (slope_CV.T @ input_RD[rows, size:]).float()
        ctx.grads = (grad_RD[:, :size], None if grad_VM is None else grad_RD[:, size:], grad_VM)
        ctx.dtypes = (hidden_RD.dtype, None if markov_RM is None else markov_RM.dtype)
        ctx.mark_non_differentiable(cross_entropy_R, l1_R)
        total = (labels.weight_R * (weights.cross_entropy * cross_entropy_R + weights.l1 * l1_R)).sum()
        return total, cross_entropy_R, l1_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]  # the other outputs are not differentiable
        hidden_RD, markov_RM, markov_VM = ctx.grads
        scaled = (
            grad * hidden_RD.to(ctx.dtypes[0]),
            None if markov_RM is None else grad * markov_RM.to(ctx.dtypes[1]),
            None if markov_VM is None else grad * markov_VM,
        )
        return (*scaled, None, None, None)
