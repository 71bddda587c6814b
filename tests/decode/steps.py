"""Results of decode steps, without engines."""

from types import SimpleNamespace
from typing import Any

import torch

from decode.batch import StepLoad
from decode.step_result import StepResult, StepTimestamps
from engine.drafters import DraftBlock
from engine.types import SampledToken


def step_result(
    load: StepLoad, lengths: list[int], accepted: list[int], seconds: float, drafted: bool = True
) -> StepResult:
    """A step of so many seconds that verified `lengths` drafts and accepted so many of them."""
    batch: Any = SimpleNamespace(sequences=())
    block = DraftBlock(torch.empty(len(lengths), max(1, *lengths) if drafted else 0, dtype=torch.int64))
    tokens = [[SampledToken(0, 0.0)] * (1 + count) for count in accepted]
    return StepResult(batch, load, block, lengths, tokens, StepTimestamps(0.0, 0.0, 0.0, seconds))
