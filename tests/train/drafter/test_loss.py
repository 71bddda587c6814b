"""The objective is the published one: by hand, and its gradients as autograd would find them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from train.drafter import loss as loss_module
from train.drafter.loss import DraftLosses, Labels, LossWeights, Vocabulary, losses

PUBLISHED = LossWeights(0.1, 0.9, 1.0)


def of_distributions(
    q_RV: Tensor, p_RV: Tensor, token_R: Tensor, weight_R: Tensor, confidence_R: Tensor | None, shares: LossWeights
) -> DraftLosses:
    """With a head that hands states through: a state is the logarithm of its distribution."""
    size = q_RV.shape[1]
    labels = Labels(p_RV.log(), token_R, weight_R)
    return losses(q_RV.log(), None, confidence_R, labels, Vocabulary(torch.eye(size), None, torch.float32), shares)


def test_by_hand() -> None:
    """Two blocks of two drafts over three tokens."""
    q = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]
    p = [[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]]
    tokens, confidence = [0, 2, 1, 0], [0.0, 1.0, -1.0, 2.0]
    weights = [1.0, math.exp(-1 / 4)] * 2
    weights = [w / sum(weights) for w in weights]
    wanted = {"cross_entropy": 0.0, "l1": 0.0, "confidence": 0.0, "soft": 0.0}
    for r in range(4):
        l1 = sum(abs(a - b) for a, b in zip(p[r], q[r], strict=True))
        accepted, c = 1 - l1 / 2, 1 / (1 + math.exp(-confidence[r]))
        wanted["cross_entropy"] -= weights[r] * math.log(q[r][tokens[r]])
        wanted["soft"] -= weights[r] * sum(a * math.log(b) for a, b in zip(p[r], q[r], strict=True))
        wanted["l1"] += weights[r] * l1
        wanted["confidence"] -= weights[r] * (accepted * math.log(c) + (1 - accepted) * math.log(1 - c))
    given = (torch.tensor(q), torch.tensor(p), torch.tensor(tokens), torch.tensor(weights), torch.tensor(confidence))

    found = of_distributions(*given, PUBLISHED)
    soft = of_distributions(*given, LossWeights(0.1, 0.9, 1.0, soft=True))

    for name in ("cross_entropy", "l1", "confidence"):
        assert float(getattr(found, name)) == pytest.approx(wanted[name], rel=1e-5), name
    total = 0.1 * wanted["cross_entropy"] + 0.9 * wanted["l1"] + wanted["confidence"]
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(soft.cross_entropy) == pytest.approx(wanted["soft"], rel=1e-5)
    assert found.acceptance_R.tolist() == pytest.approx([0.9, 0.5, 0.7, 1 - 0.5 * 1 / 3], rel=1e-5)


@given(
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
    st.tuples(*[st.floats(0, 2)] * 3),
    st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_the_plain_formula(
    seed: int, soft: bool, markov: bool, parts: tuple[float, float, float], chunk: int
) -> None:
    """However rows fall into chunks; some rows have no weight."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    rows, size, rank, vocab = 23, 6, 3, 17
    hidden, head, final = random(rows, size).requires_grad_(), random(vocab, size), random(rows, size)
    inputs = [hidden]
    if markov:
        inputs += [random(rows, rank).requires_grad_(), random(vocab, rank).requires_grad_()]
    confidence = random(rows).requires_grad_()
    tokens = torch.randint(vocab, (rows,), generator=generator)
    weight = random(rows).clamp(min=0)
    shares = LossWeights(*parts, soft=soft)
    before, loss_module.CHUNK_ROWS = loss_module.CHUNK_ROWS, chunk
    try:
        found = losses(
            hidden,
            inputs[1] if markov else None,
            confidence,
            Labels(final, tokens, weight),
            Vocabulary(head, inputs[2] if markov else None, torch.float32),
            shares,
        )
    finally:
        loss_module.CHUNK_ROWS = before

    p = (final @ head.T).softmax(-1)
    log_q = (hidden @ head.T + (inputs[1] @ inputs[2].T if markov else 0)).log_softmax(-1)
    cross_entropy = -(p * log_q).sum(-1) if soft else functional.nll_loss(log_q, tokens, reduction="none")
    l1 = (log_q.exp() - p).abs().sum(-1)
    label = (1 - 0.5 * l1.detach()).clamp(0, 1)
    said = functional.binary_cross_entropy_with_logits(confidence, label, reduction="none")
    total = (weight * (shares.cross_entropy * cross_entropy + shares.l1 * l1 + shares.confidence * said)).sum()

    torch.testing.assert_close(found.total, total, atol=1e-5, rtol=1e-4)
    wanted = torch.autograd.grad(total, [*inputs, confidence])
    for mine, theirs in zip(torch.autograd.grad(found.total, [*inputs, confidence]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_confidence_teaches_the_drafter_nothing_about_its_own_label() -> None:
    """The label is the acceptance, not differentiated."""
    q = torch.randn(6, 5, requires_grad=True)
    p, tokens, weight = torch.randn(6, 5).softmax(-1), torch.zeros(6, dtype=torch.int64), torch.ones(6)
    found = [of_distributions(q.softmax(-1), p, tokens, weight, c, PUBLISHED) for c in (torch.randn(6), None)]
    torch.testing.assert_close(*(torch.autograd.grad(loss.total, q)[0] for loss in found))
