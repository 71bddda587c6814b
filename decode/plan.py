"""Whether to draft, and how many of each request's drafts to verify: Algorithm 1 of the DSpark paper, and its
production form.

What a step is worth is in objective.py.

    causal   admits while theta rises and stops at the first fall, by the confidences of these very drafts. The stop
             keeps it lossless: whether a draft is verified must not depend on what was drafted after it (Appendix A).
    lagged   takes the number of drafts from confidences two steps old, where any search is lossless because they know
             nothing of these drafts, and gives it to the fresh drafts that survive best.
    fixed    verifies a fixed number, for measuring.

Confidences count as far as those of steps past could be trusted, place by place. Algorithm 1 begins when drafting has
been paid for; whether it is worth its time is asked before, of what steps past have shown (draft_length.py): theta with
the drafts that are to be expected, against theta of a step that drafts nothing.

R = requests, K = drafts of a block
"""

from collections import deque
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.draft_length import Calibration, DraftLengthController
from decode.objective import Outcome, StepLoad, StepSeconds, limited, survival, theta, top
from engine.config import DecodeConfig
from engine.drafters import DraftBlock
from engine.facts import Survival
from engine.steptime import StepTimes

LAG = 2


class Planner(Protocol):
    @property
    def seconds(self) -> StepSeconds | None:
        """What steps take, if that has been measured."""
        ...

    @property
    def survival(self) -> Survival:
        """What has become of drafts lately, at each place of a block."""
        ...

    @property
    def fixed(self) -> int | None:
        """The drafts of each request that are verified however many requests there are; None: as many as pay."""
        ...

    def drafts(self, demand: StepLoad) -> int:
        """How many drafts of each request this step should make, at most; 0 for none. Called once for every step."""
        ...

    def plan(self, block: DraftBlock, demand: StepLoad) -> list[int]:
        """How many drafts of each request to verify."""
        ...

    def observe(self, demand: StepLoad, outcome: Outcome) -> None:
        """What became of the step. Called once for every step."""
        ...


class Fixed:
    """`length` drafts of everybody. `seconds` only tell others what steps take."""

    EMA_WEIGHT = 0.1  # the share of the newest step in survival

    def __init__(self, length: int, seconds: StepSeconds | None = None) -> None:
        self.fixed = length
        self.seconds = seconds
        self._survival: list[float] = []

    @property
    def survival(self) -> Survival:
        return Survival([*accumulate(self._survival, min)])

    def drafts(self, demand: StepLoad) -> int:
        return min(self.fixed, max(demand.most))

    def plan(self, block: DraftBlock, demand: StepLoad) -> list[int]:
        return [min(self.fixed, block.length, limit) for limit in demand.most]

    def observe(self, demand: StepLoad, outcome: Outcome) -> None:
        if self.seconds is not None:
            self.seconds.observe(demand, outcome)
        for place in range(max(outcome.lengths)):
            both = zip(outcome.lengths, outcome.accepted, strict=True)
            survived = [accepted > place for length, accepted in both if length > place]
            share = sum(survived) / len(survived)
            if place == len(self._survival):
                self._survival.append(share)
            self._survival[place] += self.EMA_WEIGHT * (share - self._survival[place])


class ConfidencePlanner:
    """What both planners by confidence have in common: step times, outlook and calibration, kept up by every step."""

    fixed = None

    def __init__(self, times: StepTimes, block_length: int) -> None:
        self.seconds = StepSeconds(times, block_length)
        self._outlook = DraftLengthController(self.seconds)
        self._calibration = Calibration(block_length)
        self._said_RK = torch.empty(0, 0)

    @property
    def survival(self) -> Survival:
        return self._outlook.survival

    def drafts(self, demand: StepLoad) -> int:
        return self._outlook.drafts(demand)

    def observe(self, demand: StepLoad, outcome: Outcome) -> None:
        self.seconds.observe(demand, outcome)
        if outcome.drafted:
            self._calibration.observe(self._said_RK, outcome.lengths, outcome.accepted)

    def _survival(self, block: DraftBlock) -> Tensor:
        """Calibrated, before any limit of the requests. [R, K]"""
        self._said_RK = survival(block, [block.length] * len(block.token_RK))
        survival_RK = self._calibration.applied(self._said_RK)
        self._outlook.saw(survival_RK)
        return survival_RK


class Causal(ConfidencePlanner):
    """Algorithm 1: synchronous, with the early stop."""

    def plan(self, block: DraftBlock, demand: StepLoad) -> list[int]:
        survival_RK = limited(self._survival(block), demand.most)
        worth = theta(survival_RK, self.seconds, demand)
        rises = worth[1:] > worth[:-1]
        return top(survival_RK, int(rises.long().cumprod(0).sum()))


class Lagged(ConfidencePlanner):
    """The number of drafts from two steps ago, the drafts themselves from now."""

    def __init__(self, times: StepTimes, block_length: int) -> None:
        super().__init__(times, block_length)
        self._past: deque[dict[str, Tensor]] = deque(maxlen=LAG)

    def plan(self, block: DraftBlock, demand: StepLoad) -> list[int]:
        budget = self._budget(demand)
        unlimited_RK = pad(self._survival(block), (0, self.seconds.block_length - block.length))
        self._past.append(dict(zip(demand.names, unlimited_RK, strict=True)))
        return top(limited(unlimited_RK, demand.most), budget)

    def _budget(self, demand: StepLoad) -> int:
        """Who is new since then counts as the mean of the others; while nobody is known, everything is verified."""
        known = self._past[0] if len(self._past) == LAG else {}
        rows = [known[name] for name in demand.names if name in known]
        if not rows:
            return self.seconds.block_length * len(demand.names)
        mean_K = torch.stack(rows).mean(dim=0)
        past_RK = torch.stack([known.get(name, mean_K) for name in demand.names])
        return int(theta(limited(past_RK, demand.most), self.seconds, demand).argmax())


def planner_of(config: DecodeConfig, times: StepTimes, block_length: int) -> Planner:
    """The planner that a section asks for."""
    if config.planner == "fixed" or not block_length:
        return Fixed(min(config.fixed_drafts, block_length), StepSeconds(times, block_length))
    return (Causal if config.planner == "causal" else Lagged)(times, block_length)
