"""The value of drafts: expected tokens per second.

The survival of draft j of request r is the product of its confidences up to j. With tau the expected number of tokens
that a step commits, and B the number of tokens that it verifies, a step is worth theta = tau / seconds(B):

    tau(n) = R + survival of the n drafts admitted      B(n) = R + n      R requests commit one token each anyway

Candidates are admitted in the order of survival; as survival never rises along a request, the drafts admitted of a
request are always its first ones.

R = requests, K = drafts of a block
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decode.batch import StepLoad
from decode.step_result import StepResult
from engine.drafters import DraftBlock
from engine.mean import ExponentialMean
from engine.steptime import StepTimes


class StepSeconds:
    """Step times for the planners, looked up once for each number of requests. It implements StepTimes, too.

    The table was measured once; the mean ratio of the times that steps take to those in the table corrects it, for
    steps that draft and steps that do not.
    """

    CONTEXT_STEP = 256  # tokens: contexts are rounded down to multiples of this
    EMA_WEIGHT = 0.1
    MAX_RATIO = 4.0  # a step that took more times as long was held up, and counts as this

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self._times = times
        self.block_length = block_length
        self._drafting_seconds: dict[tuple[int, int], Tensor] = {}
        self._plain_seconds: dict[tuple[int, int], float] = {}
        self._correction = {drafted: ExponentialMean(self.EMA_WEIGHT, 1.0) for drafted in (True, False)}

    def observe(self, result: StepResult) -> None:
        """Correct the table by the time that a step took."""
        requests, load = len(result.lengths), result.load
        table = self._drafting(requests, load)[result.num_verified] if result.drafted else self._plain(requests, load)
        ratio = result.timestamps.seconds / float(table)
        self._correction[result.drafted].observe(min(max(ratio, 1 / self.MAX_RATIO), self.MAX_RATIO))

    def draft_seconds(self, requests: int, context: int) -> float:
        return self._times.draft_seconds(requests, context) * self._corrected(True)

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self._times.verify_seconds(requests, tokens, context) * self._corrected(tokens > requests)

    def drafting(self, requests: int, load: StepLoad) -> Tensor:
        """Return the seconds of a step that drafts and then verifies 0, 1, 2, ... drafts, up to all."""
        return self._drafting(requests, load) * self._corrected(True) + load.overhead_seconds

    def plain(self, requests: int, load: StepLoad) -> float:
        """Return the seconds of a step without drafts."""
        return self._plain(requests, load) * self._corrected(False) + load.overhead_seconds

    def rounded(self, context: int) -> int:
        return context // self.CONTEXT_STEP * self.CONTEXT_STEP

    def _corrected(self, drafted: bool) -> float:
        return self._correction[drafted].or_else(1.0)

    def _drafting(self, requests: int, load: StepLoad) -> Tensor:
        context = self.rounded(load.context)
        if (requests, context) not in self._drafting_seconds:
            draft = self._times.draft_seconds(requests, context)
            tokens = range(requests, requests * (1 + self.block_length) + 1)
            verify = [self._times.verify_seconds(requests, n, context) for n in tokens]
            self._drafting_seconds[requests, context] = draft + torch.tensor(verify, dtype=torch.float64)
        return self._drafting_seconds[requests, context]

    def _plain(self, requests: int, load: StepLoad) -> float:
        context = self.rounded(load.context)
        if (requests, context) not in self._plain_seconds:
            self._plain_seconds[requests, context] = self._times.verify_seconds(requests, requests, context)
        return self._plain_seconds[requests, context]


def survival(block: DraftBlock, max_drafts: Sequence[int]) -> Tensor:
    """Return the probability that each draft is reached and accepted, [R, K]; 0 beyond a request's `max_drafts`."""
    if block.confidence_RK is None:
        return limited(torch.ones(block.token_RK.shape), max_drafts)
    return limited(block.confidence_RK.double().cumprod(dim=1), max_drafts)


def limited(survival_RK: Tensor, max_drafts: Sequence[int]) -> Tensor:
    """Set the survival of drafts beyond a request's `max_drafts` to 0."""
    limit_R1 = torch.tensor(max_drafts, device=survival_RK.device)[:, None]
    position_K = torch.arange(survival_RK.shape[1], device=survival_RK.device)
    return survival_RK.double().masked_fill(position_K >= limit_R1, 0.0)


def expected_throughput(survival_RK: Tensor, seconds: StepSeconds, load: StepLoad) -> Tensor:
    """Return theta, the expected tokens per second with the best 0, 1, 2, ... drafts verified.

    Drafts that cannot survive are left out.
    """
    requests = len(survival_RK)
    best = survival_RK.flatten().sort(descending=True).values
    best = best[best > 0]
    tau = requests + torch.cat([best.new_zeros(1), best.cumsum(0)])
    return tau / seconds.drafting(requests, load)[: len(tau)].to(tau.device)


def top(survival_RK: Tensor, count: int) -> list[int]:
    """Return the `count` drafts that survive best, as a length for each request.

    Of equals, earlier drafts come first, then earlier requests: so the admitted drafts of a request are always its
    first ones, and the same on every machine.
    """
    requests, length = survival_RK.shape
    order = survival_RK.T.flatten().argsort(descending=True, stable=True)[:count]
    admitted = order[survival_RK.T.flatten()[order] > 0] % requests
    lengths: list[int] = torch.bincount(admitted, minlength=requests).tolist()
    assert all(n <= length for n in lengths)
    return lengths
