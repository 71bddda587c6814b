"""A drafter's context for the tokens of a step, in one call: features, norm, and the entries of all its layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.batch import Batch, Positions
from engine.kernels.attention import NativeAttention
from engine.kernels.linear import NativeLinear
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import Columns, Op, Program, X, call_of
from engine.pages import PageStore


class NativeContext:
    """Computes entries from the target's hidden states, side by side [T, inputs of fc], and writes them to pages."""

    def __init__(
        self, fc: NativeLinear, norm: NativeRMSNorm, attentions: list[NativeAttention], store: PageStore
    ) -> None:
        columns = Columns()
        feature, normed = columns.take(fc.out_features), columns.take(fc.out_features)
        operations: list[Op] = [fc.product(X, feature), norm.norm(feature, normed)]
        first, *_ = slabs = [attention.slabs(store) for attention in attentions]
        for attention, (key, value) in zip(attentions, slabs, strict=True):
            assert key.page_stride == first[0].page_stride, "the layers of a drafter share a page group"
            offsets = (key.address - first[0].address) // 4, (value.address - first[1].address) // 4
            operations += attention.writing(normed, columns, *offsets)
        self._first, self._group = first, attentions[0].entries[0].group
        self._program = Program(attentions[0].library, operations, columns.width)
        self._scratch = store.scratch

    def __call__(self, taps_TF: Tensor, positions: Positions, batch: Batch) -> None:
        call = call_of(batch, positions, self._group, *self._first)
        call.x = taps_TF.data_ptr()
        self._program(call, self._scratch)


def native_context(
    fc: nn.Module, norm: nn.Module, attentions: Sequence[nn.Module], store: PageStore
) -> NativeContext | None:
    """Return the one-call context of a DSpark model, or None unless all parts are native and share a page group."""
    native = [attention for attention in attentions if isinstance(attention, NativeAttention)]
    if not isinstance(fc, NativeLinear) or not isinstance(norm, NativeRMSNorm) or len(native) < len(attentions):
        return None
    groups = {entry.group for attention in native for entry in attention.entries}
    return NativeContext(fc, norm, native, store) if len(groups) == 1 else None
