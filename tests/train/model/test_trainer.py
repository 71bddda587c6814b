"""The training loop: it learns, balances, and goes on from a checkpoint as if never stopped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from train.batches import Batches
from train.model.attention import fused_causal
from train.model.trainer import Recipe, Stage, Trainer
from train.optimizers import orthogonalised

RECIPE = Recipe(tokens=4 * 256, stages=(Stage(math.inf, 64, 4),), warm_up_steps=1, mtp_from=0.0)


def trainer(folder: Path) -> Trainer:
    text = np.tile(np.arange(100, 164, dtype=np.uint16), 100)
    return Trainer(RECIPE, Batches(text, text, end_token=0), folder)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "none")
    expected = [whole.step()["loss"] for _ in range(4)]
    first = trainer(tmp_path)
    losses = [first.step()["loss"] for _ in range(2)]
    first.save()
    second = trainer(tmp_path)
    second.restore()
    losses += [second.step()["loss"] for _ in range(2)]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert second.progress.tokens == whole.progress.tokens == RECIPE.tokens
    assert expected[-1] < expected[0]


def test_mtp_sends_no_gradient_into_the_main_model(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    tokens_BT = one.batches.next(2, 65)
    one._learn(tokens_BT, 1.0, with_mtp=True)
    with_mtp = {name: parameter.grad for name, parameter in one.model.named_parameters()}
    assert all(parameter.grad is not None for parameter in one.mtp.parameters())
    other = trainer(tmp_path)
    other._learn(tokens_BT, 1.0, with_mtp=False)
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(parameter.grad, with_mtp[name], msg=name)


def test_balance_lowers_the_busy_experts_bias(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    router = one.model.model.layers[1].mlp.gate
    one.model.model(input_ids=one.batches.next(2, 64), use_cache=False)
    load = one.balance.load[router].clone()
    one.balance.step(0.1)
    assert load.sum() == 2 * 64 * 2
    assert torch.equal(router.e_score_correction_bias, 0.1 * torch.sign(load.mean() - load))


def test_rate_warms_up_holds_and_decays() -> None:
    recipe = Recipe(warm_up_steps=10, decay_from=0.5, final_rate=0.1)
    assert recipe.rate(0.0, 0) == pytest.approx(0.1)
    assert recipe.rate(0.4, 100) == 1.0
    assert recipe.rate(0.75, 100) == pytest.approx(0.5)
    assert recipe.rate(1.0, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(16, 48), (3, 48, 16)])
def test_orthogonalised_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert singular.min() > 0.5
    assert singular.max() < 1.5


def test_fused_attention_equals_plain_attention() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 33, 48)
    value = torch.randn(2, 4, 33, 32)
    actual, _ = fused_causal(torch.nn.Identity(), query, key, value, None, scaling=0.2)
    mask = torch.full((33, 33), -math.inf).triu(1)
    weights = functional.softmax(query @ key.mT * 0.2 + mask, dim=-1)
    torch.testing.assert_close(actual, (weights @ value).transpose(1, 2))
