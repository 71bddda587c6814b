"""Whether to draft, and how many of each request's drafts to verify: Algorithm 1 of the DSpark paper, and its
production form.

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

Algorithm 1 begins when drafting has been paid for. Whether it is worth its time is asked before, of what steps past
have shown: theta with the drafts that are to be expected, against theta of a step that drafts nothing. Then, too,
nothing is known of the drafts that the answer decides about.

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
    def drafts(self, demand: Demand) -> bool:
        """Whether this step should draft at all. Called once for every step."""
        ...

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        """How many drafts of each request to verify."""
        ...


class Fixed:
    """`length` drafts of everybody."""

    def __init__(self, length: int) -> None:
        self._length = length

    def drafts(self, demand: Demand) -> bool:
        return min(self._length, max(demand.most)) > 0

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        return [min(self._length, block.length, limit) for limit in demand.most]


class StepSeconds:
    """Step times as the planners ask for them, looked up once for each number of requests."""

    NEAR = 256  # contexts that differ by less are one

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self._times = times
        self._block_length = block_length
        self._known: dict[tuple[int, int], Tensor] = {}

    def drafting(self, requests: int, context: int) -> Tensor:
        """Of a step that drafts and then verifies 0, 1, 2, ... drafts, up to all."""
        context = context // self.NEAR * self.NEAR
        if (requests, context) not in self._known:
            draft = self._times.draft_seconds(requests, context)
            most = requests * (1 + self._block_length)
            verify = [self._times.verify_seconds(requests, n, context) for n in range(requests, most + 1)]
            self._known[requests, context] = draft + torch.tensor(verify, dtype=torch.float64)
        return self._known[requests, context]

    def without(self, requests: int, context: int) -> float:
        """Of a step that drafts nothing."""
        return self._times.verify_seconds(requests, requests, context // self.NEAR * self.NEAR)


class Outlook:
    """What drafting will be worth, by the mean survival at each place in steps past.

    While it is not worth its time, a step drafts now and then all the same, to see whether that has changed: after
    FEWEST steps first, then, as long as it has not, after twice as many each time, MOST at last.
    """

    FEWEST, MOST = 8, 128
    NEWEST = 0.2  # the share of the newest step in the mean

    def __init__(self, seconds: StepSeconds) -> None:
        self._seconds = seconds
        self._mean_K: Tensor | None = None
        self._pause = self.FEWEST
        self._waited = 0

    def pays(self, demand: Demand) -> bool:
        """Whether to draft now."""
        if not any(demand.most):
            return False
        if self._mean_K is None or self._is_worth_it(self._mean_K, demand):
            self._pause, self._waited = self.FEWEST, 0
            return True
        self._waited += 1
        if self._waited < self._pause:
            return False
        self._pause, self._waited = min(2 * self._pause, self.MOST), 0
        return True

    def saw(self, survival_RK: Tensor) -> None:
        """Drafts were made, and these are their chances, before any limit of the requests."""
        mean_K = survival_RK.mean(dim=0)
        self._mean_K = mean_K if self._mean_K is None else self._mean_K.lerp(mean_K, self.NEWEST)

    def _is_worth_it(self, mean_K: Tensor, demand: Demand) -> bool:
        requests = len(demand.most)
        without = requests / self._seconds.without(requests, demand.context)
        expected_RK = _limited(mean_K.expand(requests, -1), demand.most)
        return float(theta(expected_RK, self._seconds, demand.context).max()) > without


class Causal:
    """Algorithm 1: synchronous, with the early stop."""

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self._seconds = StepSeconds(times, block_length)
        self._outlook = Outlook(self._seconds)

    def drafts(self, demand: Demand) -> bool:
        return self._outlook.pays(demand)

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        unlimited_RK = survival(block, [block.length] * len(demand.most))
        self._outlook.saw(unlimited_RK)
        survival_RK = _limited(unlimited_RK, demand.most)
        worth = theta(survival_RK, self._seconds, demand.context)
        rises = worth[1:] > worth[:-1]
        return top(survival_RK, int(rises.long().cumprod(0).sum()))


class Lagged:
    """The number of drafts from two steps ago, the drafts themselves from now."""

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self._seconds = StepSeconds(times, block_length)
        self._outlook = Outlook(self._seconds)
        self._past: deque[dict[str, Tensor]] = deque(maxlen=LAG)

    def drafts(self, demand: Demand) -> bool:
        return self._outlook.pays(demand)

    def plan(self, block: DraftBlock, demand: Demand) -> list[int]:
        budget = self._budget(block.length, demand)
        unlimited_RK = survival(block, [block.length] * len(demand.names))
        self._outlook.saw(unlimited_RK)
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
        return int(theta(_limited(past_RK, demand.most), self._seconds, demand.context).argmax())


def survival(block: DraftBlock, most: Sequence[int]) -> Tensor:
    """[R, K]: the chance that each draft is reached and accepted; 0 beyond what a request may use."""
    if block.confidence_RK is None:
        return _limited(torch.ones(block.token_RK.shape), most)
    return _limited(block.confidence_RK.double().cumprod(dim=1), most)


def _limited(survival_RK: Tensor, most: Sequence[int]) -> Tensor:
    limit_R1 = torch.tensor(most, device=survival_RK.device)[:, None]
    place_K = torch.arange(survival_RK.shape[1], device=survival_RK.device)
    return survival_RK.double().masked_fill(place_K >= limit_R1, 0.0)


def theta(survival_RK: Tensor, seconds: StepSeconds, context: int) -> Tensor:
    """Expected tokens per second with the best 0, 1, 2, ... drafts verified; those that cannot survive are left out."""
    requests = len(survival_RK)
    best = survival_RK.flatten().sort(descending=True).values
    best = best[best > 0]
    tau = requests + torch.cat([best.new_zeros(1), best.cumsum(0)])
    return tau / seconds.drafting(requests, context)[: len(tau)].to(tau.device)


def top(survival_RK: Tensor, count: int) -> list[int]:
    """The `count` drafts that survive best, as a length for each request. Of equals, earlier drafts go first, then
    earlier requests: so the lengths are always those of beginnings, and the same on every machine."""
    requests, length = survival_RK.shape
    order = survival_RK.T.flatten().argsort(descending=True, stable=True)[:count]
    admitted = order[survival_RK.T.flatten()[order] > 0] % requests
    lengths: list[int] = torch.bincount(admitted, minlength=requests).tolist()
    assert all(n <= length for n in lengths)
    return lengths
