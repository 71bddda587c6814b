"""Running the model: a `Batch` in, logits and taps out. Never waits for the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.batch import Batch
from engine.pages import PageStore


@dataclass(frozen=True)
class Output:
    """`logits` [rows that asked, vocabulary], float32; `taps[i]` [T, hidden] after decoder layer i."""

    logits: Tensor
    taps: dict[int, Tensor]


class Backend(Protocol):
    def forward(self, batch: Batch) -> Output:
        """Write the batch's keys and values into its pages and return logits for `batch.logits_index`."""
        ...


class TorchBackend:
    """transformers' model with our attention, eagerly. `tap_layers` are decoder layers whose output is kept."""

    def __init__(self, model: PreTrainedModel, store: PageStore, tap_layers: Sequence[int] = ()) -> None:
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._store = store
        self._tap_layers = tap_layers

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Output:
        hidden_TD, taps = hidden_states(self._decoder, batch, self._store, self._tap_layers)
        logits: Tensor = self._head(hidden_TD.index_select(0, batch.logits_index))
        return Output(logits.float(), taps)


def hidden_states(
    decoder: Any, batch: Batch, store: PageStore, tap_layers: Sequence[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Through a transformers decoder: the states [T, hidden] after its final norm, and after the tapped layers. Its own
    forward does the same and makes masks, caches and outputs of many kinds besides: 0.15 ms of a step (2 cores)."""
    hidden_1TD = decoder.embed_tokens(batch.token_ids_T[None])
    positions = decoder.rotary_emb(hidden_1TD, batch.positions_T[None])
    taps: dict[int, Tensor] = {}
    for i, layer in enumerate(decoder.layers):
        hidden_1TD = layer(hidden_1TD, position_embeddings=positions, batch=batch, store=store)
        if i in tap_layers:
            taps[i] = hidden_1TD[0]
    return decoder.norm(hidden_1TD)[0], taps
