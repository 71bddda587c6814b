"""A drafter over its target, fed by hand, a chunk at a time."""

from typing import Any

import torch

from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.drafters import Anchor, HiddenStates, LoadedDrafter
from engine.models import LoadedModel
from engine.pages import CacheLayout, Pages, PageStore
from engine.types import Sampling

CPU = torch.device("cpu")
PAGE = 16


class Bench:
    """A drafter over its target, fed by hand."""

    def __init__(self, model: LoadedModel, loaded: LoadedDrafter) -> None:
        self.layout = CacheLayout.of([*model.entries, *loaded.entries], PAGE)
        store = PageStore(self.layout, dict.fromkeys(self.layout.groups, 60), CPU)
        self.pages = Pages(self.layout, store)
        self.drafter: Any = loaded.bind(store)
        self.backend = TorchBackend(model.module, store, self.drafter.tap_layers)

    def seen(self, name: str, tokens: list[int], chunks: list[int]) -> Anchor:
        """The target sees all tokens but the last in such chunks; the drafter absorbs them."""
        tables = self.pages.open(name)
        assert self.pages.extend(tables, len(tokens) + self.drafter.block_length)
        start = 0
        rows: HiddenStates = [None]
        for size in [*chunks, len(tokens)]:
            part = tokens[start : min(start + size, len(tokens) - 1)]
            if part:
                batch = Batch.of([Row(part, start, tables, 1)], self.layout, CPU)
                rows = self.absorb(batch, rows)
            start += len(part)
        return Anchor(tokens[-1], len(tokens) - 1, tables, Sampling(), hidden=rows[0])

    def absorb(self, batch: Batch, rows: HiddenStates) -> HiddenStates:
        """A step of the target, and what the drafter makes of it."""
        output = self.backend.forward(batch)
        absorbed: HiddenStates = self.drafter.absorb(batch, output.taps, rows, batch.logits_index)
        return absorbed


def some_tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
