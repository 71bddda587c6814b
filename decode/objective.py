"""What drafts are worth: expected tokens per second.

Survival of draft j of request r is the product of its confidences up to j. With tau the expected number of tokens that
a step commits, and B the tokens it verifies, a step is worth theta = tau / seconds(B) tokens per second:

    tau(n) = R + survival of the n drafts admitted      B(n) = R + n      R requests commit one token each anyway

Candidates are admitted in the order of survival; as it never rises along a request, what is admitted of a request is
always a beginning of its drafts.

R = requests, K = drafts of a block
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.drafters import DraftBlock
from engine.steptime import StepTimes


@dataclass(frozen=True)
class StepLoad:
    """The requests of a step: names that tell them apart from step to step, the most drafts that each can use, and
    how many tokens they have in pages, on average. Beside drafting and verifying, steps take `overhead_seconds` of
    late: all that the engine and those around it do for a step."""

    names: Sequence[str]
    most: Sequence[int]
    context: int
    overhead_seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a step: how many drafts of each request were verified and accepted, whether it drafted at all,
    and the seconds from its beginning to its tokens."""

    lengths: Sequence[int]
    accepted: Sequence[int]
    drafted: bool
    seconds: float


class StepSeconds:
    """Step times as the planners ask for them, looked up once for each number of requests; and as everybody else does
    (engine.steptime.StepTimes).

    A table was measured once; what steps take now, against what it says, corrects it, for steps that draft and steps
    that do not.
    """

    NEAR = 256  # contexts that differ by less are one
    EMA_WEIGHT = 0.1  # the share of the newest step in a correction
    WIDEST = 4.0  # a step that took more than so many times as long was held up

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self._times = times
        self.block_length = block_length
        self._known: dict[tuple[int, int], Tensor] = {}
        self._known_without: dict[tuple[int, int], float] = {}
        self._correction = {True: 1.0, False: 1.0}  # of steps that draft, and that do not

    def observe(self, demand: StepLoad, outcome: Outcome) -> None:
        """A step took so long."""
        requests, verified = len(outcome.lengths), sum(outcome.lengths)
        table = self._drafting(requests, demand)[verified] if outcome.drafted else self._without(requests, demand)
        ratio = min(max(outcome.seconds / float(table), 1 / self.WIDEST), self.WIDEST)
        self._correction[outcome.drafted] += self.EMA_WEIGHT * (ratio - self._correction[outcome.drafted])

    def draft_seconds(self, requests: int, context: int) -> float:
        return self._times.draft_seconds(requests, context) * self._correction[True]

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self._times.verify_seconds(requests, tokens, context) * self._correction[tokens > requests]

    def drafting(self, requests: int, demand: StepLoad) -> Tensor:
        """Of a step that drafts and then verifies 0, 1, 2, ... drafts, up to all."""
        return self._drafting(requests, demand) * self._correction[True] + demand.overhead_seconds

    def without(self, requests: int, demand: StepLoad) -> float:
        """Of a step that drafts nothing."""
        return self._without(requests, demand) * self._correction[False] + demand.overhead_seconds

    def _drafting(self, requests: int, demand: StepLoad) -> Tensor:
        context = demand.context // self.NEAR * self.NEAR
        if (requests, context) not in self._known:
            draft = self._times.draft_seconds(requests, context)
            most = requests * (1 + self.block_length)
            verify = [self._times.verify_seconds(requests, n, context) for n in range(requests, most + 1)]
            self._known[requests, context] = draft + torch.tensor(verify, dtype=torch.float64)
        return self._known[requests, context]

    def _without(self, requests: int, demand: StepLoad) -> float:
        context = demand.context // self.NEAR * self.NEAR
        if (requests, context) not in self._known_without:
            self._known_without[requests, context] = self._times.verify_seconds(requests, requests, context)
        return self._known_without[requests, context]


def survival(block: DraftBlock, most: Sequence[int]) -> Tensor:
    """[R, K]: the chance that each draft is reached and accepted; 0 beyond what a request may use."""
    if block.confidence_RK is None:
        return limited(torch.ones(block.token_RK.shape), most)
    return limited(block.confidence_RK.double().cumprod(dim=1), most)


def limited(survival_RK: Tensor, most: Sequence[int]) -> Tensor:
    limit_R1 = torch.tensor(most, device=survival_RK.device)[:, None]
    place_K = torch.arange(survival_RK.shape[1], device=survival_RK.device)
    return survival_RK.double().masked_fill(place_K >= limit_R1, 0.0)


def theta(survival_RK: Tensor, seconds: StepSeconds, demand: StepLoad) -> Tensor:
    """Expected tokens per second with the best 0, 1, 2, ... drafts verified; those that cannot survive are left out."""
    requests = len(survival_RK)
    best = survival_RK.flatten().sort(descending=True).values
    best = best[best > 0]
    tau = requests + torch.cat([best.new_zeros(1), best.cumsum(0)])
    return tau / seconds.drafting(requests, demand)[: len(tau)].to(tau.device)


def top(survival_RK: Tensor, count: int) -> list[int]:
    """The `count` drafts that survive best, as a length for each request. Of equals, earlier drafts go first, then
    earlier requests: so the lengths are always those of beginnings, and the same on every machine."""
    requests, length = survival_RK.shape
    order = survival_RK.T.flatten().argsort(descending=True, stable=True)[:count]
    admitted = order[survival_RK.T.flatten()[order] > 0] % requests
    lengths: list[int] = torch.bincount(admitted, minlength=requests).tolist()
    assert all(n <= length for n in lengths)
    return lengths
