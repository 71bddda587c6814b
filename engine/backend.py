"""Running the model: a `Batch` in, logits and taps out. Never waits for the device."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
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

    def __init__(self, model: PreTrainedModel, store: PageStore, tap_layers: tuple[int, ...] = ()) -> None:
        self._model = model
        self._store = store
        self._taps: dict[int, Tensor] = {}
        layers = model.get_decoder().layers
        for layer in tap_layers:
            layers[layer].register_forward_hook(self._tap(layer))

    def _tap(self, layer: int):  # type: ignore[no-untyped-def]
        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            self._taps[layer] = output[0]

        return keep

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Output:
        self._taps = {}
        output = self._model(
            input_ids=batch.token_ids_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            logits_to_keep=batch.logits_index,  # a tensor, never a number: a number cuts rows inside some models
            batch=batch,
            store=self._store,
        )
        return Output(output.logits[0].float(), self._taps)
