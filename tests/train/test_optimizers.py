"""Muon and AdamW share one schedule and one checkpoint."""

import copy

import pytest
import torch
from torch import nn

from train.optimizers import Muon, ParameterGroup, ScheduledOptimizers


def optimizers(model: nn.Linear) -> ScheduledOptimizers:
    return ScheduledOptimizers(Muon([model.weight], 0.1), [ParameterGroup([model.bias], 0.01), ParameterGroup([], 1.0)])


def learn(model: nn.Linear, optimizer: ScheduledOptimizers, factor: float) -> None:
    optimizer.set_rates(factor)
    model(torch.ones(3)).sum().backward()
    optimizer.step()


def test_a_rate_is_its_peak_times_the_last_factor() -> None:
    one = optimizers(nn.Linear(3, 2))
    for factor in (0.5, 0.25):
        one.set_rates(factor)
    assert [group["lr"] for state in one.state() for group in state["param_groups"]] == pytest.approx([0.025, 0.0025])


def test_without_muon_adamw_updates_all_groups() -> None:
    model = nn.Linear(3, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    groups = [ParameterGroup([model.weight], 0.01), ParameterGroup([model.bias], 0.01)]
    learn(model, ScheduledOptimizers(None, groups), 1.0)
    assert not any(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_restored_state_continues_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    whole, resumed = nn.Linear(3, 2), nn.Linear(3, 2)
    first = optimizers(whole)
    learn(whole, first, 1.0)
    resumed.load_state_dict(whole.state_dict())
    second = optimizers(resumed)
    second.restore(copy.deepcopy(first.state()))
    for model, optimizer in ((whole, first), (resumed, second)):
        learn(model, optimizer, 0.5)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
