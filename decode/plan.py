"""How many of each request's drafts are worth verifying: Algorithm 1 of the DSpark paper, and its production form.

Survival of draft j of request r is the product of its calibrated confidences up to j. With tau the expected number of
tokens that a step commits, and B the tokens it verifies, a step is worth theta = tau / seconds(B) tokens per second:

    tau(n) = R + survival of the n drafts admitted      B(n) = R + n      R requests commit one token each anyway

Candidates are admitted in the order of survival; as it never rises along a request, what is admitted of a request is
always a beginning of its drafts.

    causal   admits while theta rises and stops at the first fall, by the confidences of these very drafts. The stop
             keeps it lossless: whether a draft is verified must not depend on what was drafted after it (Appendix A).
    lagged   takes the number of drafts from confidences two steps old, where any search is lossless because they know
             nothing of these drafts, and gives it to the fresh drafts that survive best.
    fixed    verifies a fixed number, for measuring.

R = requests, K = drafts of a block
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.drafters import DraftBlock
from engine.steptime import StepTimes

LAG = 2


@dataclass(frozen=True)
class Demand:
    """The requests of a step: names that tell them apart from step to step, the most drafts that each can use, and
    how many tokens they have in pages, on average."""

    names: Sequence[str]
    most: Sequence[int]
    context: int


class Planner(Protocol):
    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        """How many drafts of each request to verify."""
        ...


class Fixed:
    """`length` drafts of everybody."""

    def __init__(self, length: int) -> None:
        self._length = length

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        return [min(self._length, block.length, limit) for limit in demand.most]


class Causal:
    """Algorithm 1: synchronous, with the early stop."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        survival_RK = survival(block, demand.most)
        worth = theta(survival_RK, self._times, demand.context)
        rises = worth[1:] > worth[:-1]
        return top(survival_RK, int(rises.long().cumprod(0).sum()))


class Lagged:
    """The number of drafts from two steps ago, the drafts themselves from now."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._past: deque[dict[str, Tensor]] = deque(maxlen=LAG)

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        budget = self._budget(block.length, demand)
        unlimited_RK = survival(block, [block.length] * len(demand.names))
        self._past.append(dict(zip(demand.names, unlimited_RK, strict=True)))
        return top(_limited(unlimited_RK, demand.most), budget)

    def _budget(self, length: int, demand: Demand) -> int:
        """Who is new since then counts as the mean of the others; while nobody is known, everything is verified."""
        known = self._past[0] if len(self._past) == LAG else {}
        rows = [known[name] for name in demand.names if name in known]
        if not rows:
            return length * len(demand.names)
        mean_K = torch.stack(rows).mean(dim=0)
        past_RK = torch.stack([known.get(name, mean_K) for name in demand.names])
        return int(theta(_limited(past_RK, demand.most), self._times, demand.context).argmax())


def survival(block: DraftBlock, most: Sequence[int]) -> Tensor:
    """[R, K]: the chance that each draft is reached and accepted; 0 beyond what a request may use."""
    if block.confidence_RK is None:
        return _limited(torch.ones(block.token_RK.shape), most)
    return _limited(block.confidence_RK.double().cumprod(dim=1), most)


def _limited(survival_RK: Tensor, most: Sequence[int]) -> Tensor:
    limit_R1 = torch.tensor(most, device=survival_RK.device)[:, None]
    place_K = torch.arange(survival_RK.shape[1], device=survival_RK.device)
    return survival_RK.double().masked_fill(place_K >= limit_R1, 0.0)


def theta(survival_RK: Tensor, times: StepTimes, context: int) -> Tensor:
    """Expected tokens per second with the best 0, 1, 2, ... drafts verified; those that cannot survive are left out."""
    requests = len(survival_RK)
    best = survival_RK.flatten().sort(descending=True).values
    best = best[best > 0]
    tau = requests + torch.cat([best.new_zeros(1), best.cumsum(0)])
    draft = times.draft_seconds(requests, context)
    seconds = [draft + times.verify_seconds(requests, requests + n, context) for n in range(len(tau))]
    return tau / torch.tensor(seconds, dtype=tau.dtype, device=tau.device)


def top(survival_RK: Tensor, count: int) -> list[int]:
    """The `count` drafts that survive best, as a length for each request. Of equals, earlier drafts go first, then
    earlier requests: so the lengths are always those of beginnings, and the same on every machine."""
    requests, length = survival_RK.shape
    order = survival_RK.T.flatten().argsort(descending=True, stable=True)[:count]
    admitted = order[survival_RK.T.flatten()[order] > 0] % requests
    lengths: list[int] = torch.bincount(admitted, minlength=requests).tolist()
    assert all(n <= length for n in lengths)
    return lengths
