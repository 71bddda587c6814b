"""A drafter's context of a step's tokens in one call: feature, norm, and the entries of all of its layers."""

from typing import Any

from torch import Tensor

from engine.batch import Batch
from engine.kernels.attention import NativeAttention
from engine.kernels.linear import NativeLinear
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import Columns, Program, X, step_of
from engine.pages import PageStore


class NativeContext:
    """Taps side by side [T, inputs of fc] -> entries in the pages of one store."""

    def __init__(self, model: Any, store: PageStore) -> None:
        attentions: list[NativeAttention] = model.attentions
        columns = Columns()
        feature, normed = columns.take(model.fc.out_features), columns.take(model.fc.out_features)
        operations = [model.fc.product(X, feature), model.hidden_norm.norm(feature, normed)]
        first, *_ = slabs = [attention.slabs(store) for attention in attentions]
        for attention, (key, value) in zip(attentions, slabs, strict=True):
            assert key.page_stride == first[0].page_stride, "drafter layers in one page group"
            places = (key.address - first[0].address) // 4, (value.address - first[1].address) // 4
            operations += attention.writing(normed, columns, *places)
        self._first, self._group = first, attentions[0].entries[0].group
        self._program = Program(attentions[0].library, operations, columns.width)

    def __call__(self, taps_TF: Tensor, positions: Any, batch: Batch) -> None:
        call = step_of(batch, positions).aim(self._group, *self._first)
        call.x = taps_TF.data_ptr()
        self._program(call)


def native_context(model: Any, store: PageStore) -> NativeContext | None:
    """For a DSpark model whose parts are all ours, in one page group."""
    parts = isinstance(model.fc, NativeLinear) and isinstance(model.hidden_norm, NativeRMSNorm)
    if not parts or not all(isinstance(attention, NativeAttention) for attention in model.attentions):
        return None
    groups = {entry.group for attention in model.attentions for entry in attention.entries}
    return NativeContext(model, store) if len(groups) == 1 else None
