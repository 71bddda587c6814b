"""A system in steady state: a fixed number of requests, all in the middle of their answers, and prefill that keeps up.

There are no queues and no randomness: simulation (simulated.py) adds these, and the report shows both.
"""

from dataclasses import dataclass
from functools import cached_property

from compare.study.dspark import Drafting
from compare.study.scenario import Scenario, WorkloadSection
from compare.study.setups import DeviceUnits, Setup

GRID, COARSE = 32, 4  # numbers of drafts that are tried
CHUNK = 16_384  # tokens of a step of prefill


@dataclass(frozen=True)
class OperatingPoint:
    """One decode replica with `requests` under way. `machines`: its own, and its share of the prefill pool."""

    setup: Setup
    requests: int
    step_seconds: float
    step_tokens: float
    """Of each request and step, in the mean."""
    verify_tokens: float
    """Likewise, the one before the drafts included."""
    prefill_replicas: float
    output_tokens: int

    @property
    def throughput(self) -> float:
        """Output tokens per second of the replica."""
        return self.requests * self.user_rate

    @property
    def user_rate(self) -> float:
        """Tokens per second of each request."""
        return self.step_tokens / self.step_seconds

    @property
    def arrivals(self) -> float:
        """Requests per second."""
        return self.throughput / self.output_tokens

    @property
    def machines(self) -> tuple[DeviceUnits, ...]:
        own = self.setup.parts
        if self.setup.prefill_part is None:
            return own
        part = self.setup.prefill_part
        return (*own, DeviceUnits(part.numbers, part.units * self.prefill_replicas))


@dataclass(frozen=True)
class Steady:
    """A setup under a scenario's workload."""

    setup: Setup
    workload: WorkloadSection
    drafting: Drafting
    mtp: float
    utilisation: float

    @classmethod
    def of(cls, setup: Setup, scenario: Scenario, drafting: Drafting) -> "Steady":
        """`drafting` is the scenario's: it is shared, because it takes long to make."""
        return cls(setup, scenario.workload, drafting, scenario.acceptance.mtp, scenario.utilisation)

    def at(self, requests: int) -> OperatingPoint:
        """Return the operating point with that many requests under way in a replica."""
        assert 1 <= requests <= self.setup.max_requests
        seconds, tokens, verified = self._best_step(requests)
        rate = requests * tokens / seconds / self.workload.output_tokens
        replicas = rate * self.prefill_seconds / self.utilisation if self.setup.prefill is not None else 0.0
        return OperatingPoint(self.setup, requests, seconds, tokens, verified, replicas, self.workload.output_tokens)

    def fullest(self, user_rate: float, limit: int) -> OperatingPoint | None:
        """Return the point with the most requests that still get `user_rate` tokens per second each; None if one alone
        does not."""
        low, high = 1, min(limit, self.setup.max_requests)
        best = self.at(1)
        if best.user_rate < user_rate:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            point = self.at(middle)
            if point.user_rate >= user_rate:
                low, best = middle, point
            else:
                high = middle - 1
        return best

    @cached_property
    def prefill_seconds(self) -> float:
        """Return the prefill time of one prompt, in steps of at most CHUNK tokens."""
        prefill = self.setup.prefill
        assert prefill is not None
        new, before = self.workload.new_tokens, self.workload.input_tokens - self.workload.new_tokens
        if new >= CHUNK:
            chunks = new / CHUNK
            return chunks * prefill.prefill_seconds(1, CHUNK, before + new // 2)
        prompts = max(1, CHUNK // new)  # a step is filled with several prompts
        return prefill.prefill_seconds(prompts, prompts * new, before + new // 2) / prompts

    @cached_property
    def _worth(self) -> list[tuple[float, float]]:
        """(drafts verified of each request, tokens that they add), of which the best is taken."""
        kind, block = self.setup.drafts, self.drafting.block
        if kind == "none":
            return [(0.0, 0.0)]
        if kind == "mtp":
            return [(1.0, self.mtp - 1)]
        if kind == "fixed":
            return [(float(block), self.drafting.gained(block))]
        return [(block * i / GRID, self.drafting.gained(block * i / GRID)) for i in range(GRID + 1)]

    def _best_step(self, requests: int) -> tuple[float, float, float]:
        """Return the best step: try every COARSE-th number of drafts to verify, then those around the best, as there is
        one maximum."""
        worth = self._worth
        coarse = range(0, len(worth), COARSE)
        steps = {i: self._step(requests, *worth[i]) for i in coarse}
        best = max(steps, key=lambda i: steps[i][1] / steps[i][0])
        near = range(max(0, best - COARSE + 1), min(len(worth), best + COARSE))
        steps |= {i: self._step(requests, *worth[i]) for i in near if i not in steps}
        return max(steps.values(), key=lambda step: step[1] / step[0])

    def _step(self, requests: int, drafts: float, gained: float) -> tuple[float, float, float]:
        """Seconds, tokens and verified tokens of each request. Without a prefill pool each step also has the prompts'
        tokens that come in while it runs."""
        times, context = self.setup.times, self.workload.context
        tokens = requests * (1 + drafts)
        if self.setup.prefill is None:
            tokens += requests * (1 + gained) / self.workload.output_tokens * self.workload.new_tokens
        seconds = times.verify_seconds(requests, round(tokens), context)
        if drafts:
            seconds += times.draft_seconds(requests, context)
        return seconds, 1 + gained, 1 + drafts
