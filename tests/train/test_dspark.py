"""The drafter's training: it learns, goes on as if never stopped, and what it writes is what the engine loads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.drafters.load import load_dspark
from engine.models import load_model
from train.drafter_loss import losses
from train.drafting import FrozenTarget, draft
from train.dspark import DrafterTrainer, Recipe, Sequences, Shape, drafter_config, export_drafter, pick_anchors

SHAPE = Shape(num_layers=1, tap_layers=(0, 1), block_size=4, mask_token_id=7, markov_rank=8)
RECIPE = Recipe(steps=6, rows=4, anchors=8, warm_up_steps=1, bfloat16=False, seed=3)


def trainer(target: Path, folder: Path, recipe: Recipe = RECIPE) -> DrafterTrainer:
    text = np.random.default_rng(0).integers(0, 256, (16, 40)).astype(np.uint16)
    config = drafter_config(json.loads((target / "config.json").read_text()), SHAPE)
    frozen = FrozenTarget.load(target, SHAPE.tap_layers)
    return DrafterTrainer(recipe, config, frozen, Sequences(text, text.flatten()), folder)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
def test_loss_falls(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    one = trainer(request.getfixturevalue(family), tmp_path, Recipe(steps=30, rows=4, anchors=8, warm_up_steps=1))
    before = {name: parameter.clone() for name, parameter in one.model.named_parameters()}
    found: list[dict[str, float]] = []

    one.train(found.append)

    first, last = ({k: np.mean([f[k] for f in part]) for k in found[0]} for part in (found[:5], found[-5:]))
    for name in ("loss", "cross_entropy", "l1"):
        assert last[name] < first[name], name
    assert last["all"] > first["all"]
    for name, parameter in one.model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} learns nothing"


def test_target_stays_as_it_is(deepseek_v3: Path, tmp_path: Path) -> None:
    one = trainer(deepseek_v3, tmp_path)
    before = {name: tensor.clone() for name, tensor in one.target.model.state_dict().items()}
    one.step()
    for name, tensor in one.target.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_resumed_run_equals_an_uninterrupted_one(deepseek_v3: Path, tmp_path: Path) -> None:
    whole = trainer(deepseek_v3, tmp_path / "none")
    expected = [whole.step()["loss"] for _ in range(6)]
    first = trainer(deepseek_v3, tmp_path)
    found = [first.step()["loss"] for _ in range(3)]
    first.save()
    second = trainer(deepseek_v3, tmp_path)
    second.train(lambda figures: found.append(figures["loss"]))
    assert found == pytest.approx(expected, rel=1e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
def test_engine_loads_what_is_written(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    target: Path = request.getfixturevalue(family)
    one = trainer(target, tmp_path)
    one.step()
    export_drafter(one.model, one.config, tmp_path / "drafter")

    loaded = load_dspark(tmp_path / "drafter", load_model(target, torch.float32, torch.device("cpu")))

    names = {name for name, _ in loaded.model.named_parameters()}
    assert not any("embed_tokens" in name or "lm_head" in name for name in names)
    for name, tensor in loaded.model.named_parameters():
        torch.testing.assert_close(tensor, one.model.get_parameter(name).to(torch.bfloat16).float(), msg=name)
    assert loaded.model.config.block_size == SHAPE.block_size


def test_losses_are_the_published_ones() -> None:
    """Two blocks of two drafts over three tokens, by hand."""
    q = [[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]]
    p = [[[0.6, 0.2, 0.2], [0.3, 0.3, 0.4]], [[0.1, 0.1, 0.8], [0.2, 0.3, 0.5]]]
    labels, confidence = [[0, 2], [1, 0]], [[0.0, 1.0], [-1.0, 2.0]]
    weights = {0: 1.0, 1: math.exp(-1 / 4)}
    sums = {"cross_entropy": 0.0, "l1": 0.0, "confidence": 0.0}
    for r in range(2):
        for k in range(2):
            l1 = sum(abs(a - b) for a, b in zip(p[r][k], q[r][k], strict=True))
            accepted, c = 1 - l1 / 2, 1 / (1 + math.exp(-confidence[r][k]))
            sums["cross_entropy"] -= weights[k] * math.log(q[r][k][labels[r][k]])
            sums["l1"] += weights[k] * l1
            sums["confidence"] -= weights[k] * (accepted * math.log(c) + (1 - accepted) * math.log(1 - c))
    expected = {name: value / (2 * sum(weights.values())) for name, value in sums.items()}

    found = losses(torch.tensor(q).log(), torch.tensor(p), torch.tensor(labels), torch.tensor(confidence))

    assert float(found.cross_entropy) == pytest.approx(expected["cross_entropy"], rel=1e-5)
    assert float(found.l1) == pytest.approx(expected["l1"], rel=1e-5)
    assert float(found.confidence) == pytest.approx(expected["confidence"], rel=1e-5)
    total = 0.1 * expected["cross_entropy"] + 0.9 * expected["l1"] + expected["confidence"]
    assert float(found.total) == pytest.approx(total, rel=1e-5)


def test_confidence_teaches_the_drafter_nothing_about_its_own_label() -> None:
    """The label is the acceptance, not differentiated: with perfect drafts only the confidence has a gradient."""
    logits = torch.randn(2, 3, 5, requires_grad=True)
    confidence = torch.randn(2, 3)  # not 0, where the loss has no slope in its label
    probs = torch.randn(2, 3, 5).softmax(-1)
    with_head = losses(logits, probs, torch.zeros(2, 3, dtype=torch.int64), confidence).total
    without = losses(logits, probs, torch.zeros(2, 3, dtype=torch.int64), None).total
    torch.testing.assert_close(*(torch.autograd.grad(total, logits)[0] for total in (with_head, without)))


def test_anchors_have_context_and_labels() -> None:
    anchor_BN = pick_anchors((50, 12), 4, block_size=5, generator=np.random.default_rng(0))
    assert anchor_BN.shape == (50, 4)
    assert anchor_BN.min() == 1
    assert anchor_BN.max() + 5 == 11
    assert all(len(set(row)) == 4 for row in anchor_BN.tolist())


def test_rate_warms_up_and_falls_as_a_cosine() -> None:
    recipe = Recipe(warm_up_steps=10, final_rate=0.1)
    assert recipe.rate(0.0, 0) == pytest.approx(0.1)
    assert recipe.rate(0.5, 100) == pytest.approx(0.55)
    assert recipe.rate(1.0, 100) == pytest.approx(0.1)


@torch.no_grad()
def draft_losses(one: DrafterTrainer, tokens_BT: torch.Tensor, anchor_BN: torch.Tensor) -> tuple[float, float]:
    """Weighted cross-entropy and L1, one draft after the other: draft k (from 0) is for the token at anchor + k + 1,
    which the target foretells at anchor + k."""
    taps, final_BTD = one.target(tokens_BT)
    probs_BTV = one.target.logits(final_BTD).softmax(-1)
    log_q_BNKV = draft(one.model, one.target, taps, tokens_BT, anchor_BN).logits_BNKV.log_softmax(-1)
    cross_entropy = l1 = total = 0.0
    for b, anchors in enumerate(anchor_BN.tolist()):
        for n, anchor in enumerate(anchors):
            for k in range(SHAPE.block_size):
                weight = math.exp(-k / 4)
                cross_entropy -= weight * float(log_q_BNKV[b, n, k, tokens_BT[b, anchor + k + 1]])
                l1 += weight * float((log_q_BNKV[b, n, k].exp() - probs_BTV[b, anchor + k]).abs().sum())
                total += weight
    return cross_entropy / total, l1 / total


def test_drafts_are_compared_with_the_tokens_and_distributions_of_their_places(
    deepseek_v3: Path, tmp_path: Path
) -> None:
    one = trainer(deepseek_v3, tmp_path)
    tokens_BT = one.sequences.pick(2, 0.0, np.random.default_rng(1))
    anchor_BN = torch.tensor([[1, 20], [7, 35]])

    figures = one.learn(tokens_BT, anchor_BN)

    cross_entropy, l1 = draft_losses(one, tokens_BT, anchor_BN)
    assert figures["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert figures["l1"] == pytest.approx(l1, rel=1e-5)
