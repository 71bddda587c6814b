"""Runs the model: a `Batch` in, logits and tapped hidden states out. Nothing here waits for the device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.batch import Batch, Positions
from engine.pages import PageStore


@dataclass(frozen=True)
class Output:
    """`logits` float32 [tokens that need logits, vocabulary]; `taps[i]` [T, hidden] is decoder layer i's output."""

    logits: Tensor
    taps: dict[int, Tensor]


class Backend(Protocol):
    def forward(self, batch: Batch) -> Output:
        """Write the batch's keys and values into its pages and return logits for `batch.logits_index`."""
        ...


class TorchBackend:
    """Runs a transformers model with paged attention eagerly. Outputs of the decoder layers `tap_layers` are kept."""

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


class DecoderModule(Protocol):
    """A decoder of transformers, such as LlamaModel."""

    layers: Iterable[Callable[..., Tensor]]

    @property
    def embed_tokens(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def rotary_emb(self) -> Callable[[Tensor, Tensor], Positions]: ...
    @property
    def norm(self) -> Callable[[Tensor], Tensor]: ...


def hidden_states(
    decoder: DecoderModule, batch: Batch, store: PageStore, tap_layers: Sequence[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a decoder; return the hidden states [T, hidden] after its final norm and after the tapped layers.

    The decoder's own forward also prepares masks, caches and other outputs, which takes 0.15 ms of a step (2 cores).
    """
    hidden_1TD = decoder.embed_tokens(batch.token_ids_T[None])
    positions = decoder.rotary_emb(hidden_1TD, batch.positions_T[None])
    taps: dict[int, Tensor] = {}
    for i, layer in enumerate(decoder.layers):
        hidden_1TD = layer(hidden_1TD, position_embeddings=positions, batch=batch, store=store)
        if i in tap_layers:
            taps[i] = hidden_1TD[0]
    return decoder.norm(hidden_1TD)[0], taps
