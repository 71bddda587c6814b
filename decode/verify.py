"""Which of the target's tokens are committed. With drafts of length 0, each step commits the target's own token."""

from torch import Tensor

from engine.drafters import DraftBlock
from engine.edits import Edits
from engine.sampling import Draws, SamplingBatch, sample


class Exact:
    """The output is what the target alone would have drawn."""

    def __call__(self, logits_RV: Tensor, block: DraftBlock, options: SamplingBatch, edits: Edits | None) -> Draws:
        """One token for each request, from one row of logits for each."""
        assert block.length == 0
        return sample(logits_RV, options, edits)
