"""Plans how many drafts of each request to make and how many to verify: Algorithm 1 of the DSpark paper, and its
production form. objective.py defines the throughput, theta, that both maximise.

    causal   admits drafts while theta rises and stops at the first fall, by the confidences of these very drafts. The
             stop keeps it lossless: whether a draft is verified must not depend on what was drafted after it
             (Appendix A).
    lagged   takes the number of drafts from confidences two steps old, where any search is lossless because they do not
             depend on these drafts, and spends it on the fresh drafts that survive best.
    fixed    verifies a fixed number, for measurements.

Confidences are calibrated by the acceptance of past drafts at each position. Algorithm 1 starts after drafting; whether
to draft at all is decided before, from past steps (draft_length.py): theta with the expected drafts, against theta of a
step without drafts.

R = requests, K = drafts of a block
"""

from collections import deque
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.batch import StepLoad
from decode.draft_length import DraftLengthController, MeanSurvival, OnlineCalibration
from decode.objective import StepSeconds, expected_throughput, limited, survival, top
from decode.step_result import StepResult
from engine.config import DecodeConfig
from engine.drafters import DraftBlock
from engine.facts import Survival
from engine.steptime import StepTimes

LAG = 2


class Planner(Protocol):
    @property
    def seconds(self) -> StepSeconds | None:
        """The step times, if they have been measured."""
        ...

    @property
    def survival(self) -> Survival:
        """The mean survival of recent drafts."""
        ...

    @property
    def fixed(self) -> int | None:
        """The number of drafts verified for each request, if it is fixed."""
        ...

    def drafts(self, load: StepLoad) -> int:
        """Return the most drafts of each request that this step should make; 0 for none. Called once in every step."""
        ...

    def plan(self, block: DraftBlock, load: StepLoad) -> list[int]:
        """Return how many drafts of each request to verify. Called in steps that draft."""
        ...

    def observe(self, result: StepResult) -> None:
        """Learn from a step. Called once for every step."""
        ...


class FixedPlanner:
    """Verifies `length` drafts of every request. `seconds` are only kept for the rate forecast."""

    EMA_WEIGHT = 0.1

    def __init__(self, length: int, seconds: StepSeconds | None = None) -> None:
        self.fixed = length
        self.seconds = seconds
        self._mean = MeanSurvival(self.EMA_WEIGHT)

    @property
    def survival(self) -> Survival:
        return self._mean.survival

    def drafts(self, load: StepLoad) -> int:
        return min(self.fixed, max(load.max_drafts))

    def plan(self, block: DraftBlock, load: StepLoad) -> list[int]:
        return [min(self.fixed, block.length, limit) for limit in load.max_drafts]

    def observe(self, result: StepResult) -> None:
        if self.seconds is not None:
            self.seconds.observe(result)
        drafts = [*zip(result.lengths, result.accepted, strict=True)]
        survived = ([a > n for length, a in drafts if length > n] for n in range(max(result.lengths)))
        self._mean.observe(sum(position) / len(position) for position in survived)


class ConfidencePlanner:
    """The part that both planners by confidence share: step times, the number of drafts, and the calibration."""

    fixed = None

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self.seconds = StepSeconds(times, block_length)
        self._draft_length = DraftLengthController(self.seconds)
        self._calibration = OnlineCalibration(block_length)
        self._uncalibrated_RK = torch.empty(0, 0)

    @property
    def survival(self) -> Survival:
        return self._draft_length.survival

    def drafts(self, load: StepLoad) -> int:
        return self._draft_length.drafts(load)

    def observe(self, result: StepResult) -> None:
        self.seconds.observe(result)
        if result.drafted:
            self._calibration.observe(self._uncalibrated_RK, result.lengths, result.accepted)

    def _survival(self, block: DraftBlock) -> Tensor:
        """Return the calibrated survival, before any limit of the requests. [R, K]"""
        self._uncalibrated_RK = survival(block, [block.length] * len(block.token_RK))
        survival_RK = self._calibration.applied(self._uncalibrated_RK)
        self._draft_length.observe(survival_RK)
        return survival_RK


class CausalPlanner(ConfidencePlanner):
    """Algorithm 1: synchronous, with the early stop."""

    def plan(self, block: DraftBlock, load: StepLoad) -> list[int]:
        survival_RK = limited(self._survival(block), load.max_drafts)
        throughput = expected_throughput(survival_RK, self.seconds, load)
        rises = throughput[1:] > throughput[:-1]
        return top(survival_RK, int(rises.long().cumprod(0).sum()))


class LaggedPlanner(ConfidencePlanner):
    """Takes the number of drafts from two steps ago, and the drafts themselves from this step."""

    def __init__(self, times: StepTimes, block_length: int) -> None:
        super().__init__(times, block_length)
        self._past: deque[dict[str, Tensor]] = deque(maxlen=LAG)

    def plan(self, block: DraftBlock, load: StepLoad) -> list[int]:
        budget = self._budget(load)
        unlimited_RK = pad(self._survival(block), (0, self.seconds.block_length - block.length))
        self._past.append(dict(zip(load.names, unlimited_RK, strict=True)))
        return top(limited(unlimited_RK, load.max_drafts), budget)

    def _budget(self, load: StepLoad) -> int:
        """Return the number of drafts to verify. New requests count as the mean of the others; if all are new, all
        drafts are verified."""
        known = self._past[0] if len(self._past) == LAG else {}
        rows = [known[name] for name in load.names if name in known]
        if not rows:
            return self.seconds.block_length * len(load.names)
        mean_K = torch.stack(rows).mean(dim=0)
        past_RK = torch.stack([known.get(name, mean_K) for name in load.names])
        return int(expected_throughput(limited(past_RK, load.max_drafts), self.seconds, load).argmax())


def planner_of(config: DecodeConfig, times: StepTimes, block_length: int) -> Planner:
    """Return the planner that a decode section asks for."""
    if config.planner == "fixed" or not block_length:
        return FixedPlanner(min(config.fixed_drafts, block_length), StepSeconds(times, block_length))
    return (CausalPlanner if config.planner == "causal" else LaggedPlanner)(times, block_length)
