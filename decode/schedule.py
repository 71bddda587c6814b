"""Continuous batching: which requests take part in a step, and what a step did to them."""

from dataclasses import dataclass

import torch

from decode.sequence import Sequence
from engine.batch import Batch, Row
from engine.drafters import DraftBlock
from engine.edits import Draw, Edits
from engine.errors import ModelFailure
from engine.pages import Pages
from engine.sampling import NO_TOKEN, SamplingBatch
from engine.types import Chunk, Ended


@dataclass(frozen=True)
class DecodeBatch:
    """The requests of one step, in order."""

    sequences: tuple[Sequence, ...]
    pages: Pages
    eos_token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    def extended(self, block: DraftBlock) -> Batch:
        """The target's input: each request's uncached token, then its drafts."""
        assert block.length == 0
        return Batch.of([self._row(s) for s in self.sequences], self.pages.layout, self.pages.store.device)

    @property
    def options(self) -> SamplingBatch:
        rows = [(s.request.sampling, len(s.tokens)) for s in self.sequences]
        return SamplingBatch.of(rows, self.pages.store.device)

    @property
    def edits(self) -> Edits | None:
        draws = [Draw(s.request, s.tokens) for s in self.sequences]
        return Edits.of(draws, self.eos_token_ids, self.pages.store.device)

    def _row(self, sequence: Sequence) -> Row:
        assert sequence.tables is not None
        tokens = sequence.uncached
        sequence.tables.trim(sequence.num_cached)
        sequence.tables.extend(sequence.num_cached + len(tokens))
        return Row(tokens, sequence.num_cached, sequence.tables, num_logits=1)


class DecodeSchedule:
    """The requests that are decoding, in the order they came."""

    def __init__(self, pages: Pages, max_requests: int, eos_token_ids: tuple[int, ...]) -> None:
        self._pages = pages
        self._eos_token_ids = eos_token_ids
        self.max_requests = max_requests
        self.running: dict[str, Sequence] = {}

    def next(self) -> DecodeBatch:
        return DecodeBatch(tuple(self.running.values()), self._pages, self._eos_token_ids)

    def commit(self, batch: DecodeBatch, tokens: torch.Tensor, logprobs: torch.Tensor) -> list[Chunk | Ended]:
        """Give every request its tokens (the step's one copy to the host). What has ended gives its pages back."""
        events: list[Chunk | Ended] = []
        for sequence, token, logprob in zip(batch.sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.num_cached = len(sequence.tokens)
            if token == NO_TOKEN:
                events.append(self._broken(sequence))
                continue
            events.append(sequence.commit([token], [logprob]))
            if sequence.finish is not None:
                self.remove(sequence.id)
        return events

    def _broken(self, sequence: Sequence) -> Ended:
        assert sequence.tables is not None
        self._pages.clear(sequence.tables)
        self.remove(sequence.id)
        reason = f"the model gave NaN or infinity after {len(sequence.tokens)} tokens of {sequence.id}"
        return Ended(request_id=sequence.id, error=ModelFailure(reason))

    def remove(self, request_id: str) -> Sequence | None:
        """Take a request out and give its pages back."""
        sequence = self.running.pop(request_id, None)
        if sequence is not None and sequence.tables is not None:
            self._pages.release(sequence.tables)
        return sequence
