"""A whole decoder layer in one call."""

from typing import Any

from torch import Tensor, nn

from engine.batch import Batch
from engine.kernels.attention import NativeAttention, PagedProgram
from engine.kernels.feedforward import FeedForward
from engine.kernels.native import Library
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import Columns, Op, X, Y
from engine.pages import PageStore

KNOWN = ("DeepseekV2DecoderLayer", "DeepseekV3DecoderLayer", "LlamaDecoderLayer", "Qwen3DecoderLayer")


class NativeLayer:
    """Stands for the `forward` of a layer: norm, attention, add, norm, MLP or experts, add."""

    def __init__(self, layer: Any, library: Library) -> None:
        self._layer = layer
        self._program = PagedProgram(layer.self_attn, library, self._operations)

    def _operations(self, columns: Columns) -> list[Op]:
        layer = self._layer
        normed = columns.take(layer.input_layernorm.size)
        return [
            layer.input_layernorm.norm(X, normed),
            *layer.self_attn.operations(normed, Y, X, columns),
            layer.post_attention_layernorm.norm(Y, normed),
            *layer.mlp.operations(normed, Y, Y, columns),
        ]

    def __call__(
        self, hidden_states: Tensor, position_embeddings: Any, batch: Batch, store: PageStore, **_: object
    ) -> Tensor:
        return self._program(hidden_states, position_embeddings, batch, store)


def run_whole(layer: nn.Module, library: Library) -> None:
    """Let `layer` run as one program, if it is of a kind that we know and all of its parts are ours."""
    parts = {name: getattr(layer, name, None) for name in ("self_attn", "mlp")}
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    ours = isinstance(parts["self_attn"], NativeAttention) and isinstance(parts["mlp"], FeedForward)
    if type(layer).__name__ in KNOWN and ours and all(isinstance(norm, NativeRMSNorm) for norm in norms):
        layer.forward = NativeLayer(layer, library)  # type: ignore[method-assign]
