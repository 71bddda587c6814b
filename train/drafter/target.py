"""The frozen target of a drafter, run by the engine, so that its hidden states are those it has when it serves.

T = tokens of a sequence, D = hidden size, V = vocabulary, F = tapped layers and the final states, side by side
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from engine.backend import hidden_states
from engine.batch import Batch, Row
from engine.kernels import dense
from engine.models import LoadedModel, load_model
from engine.pages import CacheLayout, Pages, PageStore

PAGE_TOKENS = 64
STEP_POSITIONS = 2048  # positions of each sequence that one forward computes


class FrozenTarget:
    """A checkpoint that the engine loads, frozen. `tap_layers` are a drafter's `target_layer_ids`."""

    def __init__(self, model: LoadedModel, tap_layers: Sequence[int]) -> None:
        self.model, self.tap_layers = model, tuple(tap_layers)
        module = model.module
        self._decoder = module.get_decoder()
        self.head_VD: Tensor = dense(module.get_output_embeddings()).detach().float()
        self._embedding = module.get_input_embeddings()
        self._layout = CacheLayout.of(model.entries, PAGE_TOKENS)
        self._pages: Pages | None = None

    @classmethod
    def load(cls, path: Path, tap_layers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Self:
        """Load a checkpoint. Raises CheckpointRefused."""
        return cls(load_model(path, dtype, device), tap_layers)

    @property
    def embedding_VD(self) -> Tensor:
        """The embedding's matrix."""
        matrix: Tensor = self._embedding.weight
        return matrix

    @property
    def hidden_size(self) -> int:
        return int(self.head_VD.shape[1])

    @property
    def state_size(self) -> int:
        """The number of values that `states` returns per token."""
        return (len(self.tap_layers) + 1) * self.hidden_size

    @torch.no_grad()
    def states(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return [T, F * D] per sequence: hidden states after the tapped layers, then those after the final norm."""
        pages = self._pages_for(sequences)
        tables = [pages.open(f"sequence {i}") for i in range(len(sequences))]
        parts: list[list[Tensor]] = [[] for _ in sequences]
        for first in range(0, max(map(len, sequences)), STEP_POSITIONS):
            live = [i for i, tokens in enumerate(sequences) if len(tokens) > first]
            pieces = {i: sequences[i][first : first + STEP_POSITIONS] for i in live}
            for i in live:
                assert pages.extend(tables[i], first + len(pieces[i]))
            batch = Batch.of([Row(pieces[i], first, tables[i], 0) for i in live], self._layout, self.model.device)
            final_TD, taps = hidden_states(self._decoder, batch, pages.store, self.tap_layers)
            state_TF = torch.cat([*(taps[layer] for layer in self.tap_layers), final_TD], dim=-1)
            for i, start in zip(live, batch.start_R.tolist(), strict=True):
                parts[i].append(state_TF[start : start + len(pieces[i])])
        for table in tables:
            pages.release(table)
        return [torch.cat(part) for part in parts]

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens: `int64[...] -> float32[..., D]`."""
        embedded: Tensor = self._embedding(tokens).float()
        return embedded

    def _pages_for(self, sequences: Sequence[Sequence[int]]) -> Pages:
        """Return pages with room for `sequences`; they are kept from call to call."""
        needed = sum(-(-len(tokens) // PAGE_TOKENS) for tokens in sequences)
        if self._pages is None or min(self._pages.store.num_pages.values()) < needed:
            counts = dict.fromkeys(self._layout.groups, needed)
            self._pages = Pages(self._layout, PageStore(self._layout, counts, self.model.device), sharing=False)
        return self._pages
