"""A whole decoder layer in one call."""

from torch import Tensor, nn

from engine.batch import Batch, Positions
from engine.kernels.attention import NativeAttention, PagedProgram
from engine.kernels.feedforward import FeedForward
from engine.kernels.native import Library
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import Columns, Op, X, Y
from engine.pages import PageStore

KNOWN = ("DeepseekV2DecoderLayer", "DeepseekV3DecoderLayer", "LlamaDecoderLayer", "Qwen3DecoderLayer")


class NativeLayer:
    """Replaces the `forward` of a layer: norm, attention, add, norm, MLP or experts, add."""

    def __init__(
        self,
        norms: tuple[NativeRMSNorm, NativeRMSNorm],
        attention: NativeAttention,
        feed_forward: FeedForward,
        library: Library,
    ) -> None:
        def operations(columns: Columns) -> list[Op]:
            normed = columns.take(norms[0].size)
            return [
                norms[0].norm(X, normed),
                *attention.operations(normed, Y, X, columns),
                norms[1].norm(Y, normed),
                *feed_forward.operations(normed, Y, Y, columns),
            ]

        self._program = PagedProgram(attention, library, operations)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        **_: object,
    ) -> Tensor:
        return self._program(hidden_states, position_embeddings, batch, store)


def run_whole(layer: nn.Module, library: Library) -> None:
    """Let `layer` run as one program, if its class is known and all of its parts are native."""
    names = ("input_layernorm", "post_attention_layernorm", "self_attn", "mlp")
    before, after, attention, feed_forward = (getattr(layer, name, None) for name in names)
    if (
        type(layer).__name__ in KNOWN
        and isinstance(before, NativeRMSNorm)
        and isinstance(after, NativeRMSNorm)
        and isinstance(attention, NativeAttention)
        and isinstance(feed_forward, FeedForward)
    ):
        setattr(layer, "forward", NativeLayer((before, after), attention, feed_forward, library))  # noqa: B010
