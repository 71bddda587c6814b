"""The result of a decode step, which planner, forecast, recorder and accounts observe."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from decode.batch import DecodeBatch, StepLoad
from engine.drafters import DraftBlock
from engine.types import SampledToken


@dataclass(frozen=True)
class StepTimestamps:
    """The end times of the phases of one step, on the engine's clock, and whether an emulated device would be faster.

    On CUDA, drafting only queues work, unless the drafter has confidences, which are waited for. Forward and acceptance
    queue their work too; the step's one copy to the host, which ends verification, waits for all of it.
    """

    began: float
    drafted: float
    planned: float
    verified: float
    overran: bool = False

    @property
    def draft_seconds(self) -> float:
        return self.drafted - self.began

    @property
    def plan_seconds(self) -> float:
        return self.planned - self.drafted

    @property
    def verify_seconds(self) -> float:
        """The time from the plan to the tokens on the host; it includes writing the drafter's context."""
        return self.verified - self.planned

    @property
    def seconds(self) -> float:
        return self.verified - self.began


@dataclass(frozen=True)
class StepResult:
    """The tokens that a step drafted, verified and sampled, before they are committed to the requests.

    Of each request, the first `lengths` drafts of `block` were verified; `tokens` are the accepted drafts and one more.
    """

    batch: DecodeBatch
    load: StepLoad
    block: DraftBlock
    lengths: list[int]
    tokens: list[list[SampledToken]]
    timestamps: StepTimestamps

    @cached_property
    def accepted(self) -> list[int]:
        """The accepted drafts of each request, those beyond the end of its output included."""
        return [len(tokens) - 1 for tokens in self.tokens]

    @cached_property
    def num_verified(self) -> int:
        """The drafts of all requests that were verified."""
        return sum(self.lengths)

    @property
    def drafted(self) -> bool:
        """Return whether the step made drafts at all."""
        return self.block.length > 0


class StepObserver(Protocol):
    def observe(self, result: StepResult) -> None:
        """Take note of a step. Called once for every step, before its tokens are committed."""
        ...
