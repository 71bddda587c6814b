"""Programs for kernels.cpp: lists of operations that one call runs, and the call's arguments.

Operations read and write *operands*: X and Y, which come with each call, or columns of the scratch memory, which holds
all intermediate results. A program depends neither on the number of tokens nor on the pages they write to.

kernels.cpp checks nothing; the assertions here are what keeps it from reading or writing out of bounds.

T = tokens of a call, H = query heads, G = key heads, D = key size, E = value size
"""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from engine.batch import Batch, Keys, Positions
from engine.device import ScratchMemory
from engine.kernels.native import Library
from engine.pages import Slab

X, Y, NOWHERE, KEYS, VALUES = -1, -2, -3, -4, -5
HALVES, PAIRS_TO_HALVES, PAIRS = range(3)  # which numbers a rotation combines, and where it stores them
Fields = list[tuple[str, type[c_int64] | type[c_float] | type[c_void_p]]]


def _ints(*names: str) -> Fields:
    return [(name, c_int64) for name in names]


def _pointers(*names: str) -> Fields:
    return [(name, c_void_p) for name in names]


class Op(Structure):
    """One operation; the fields of each kind are those of its struct in kernels.cpp.

    A tensor given for a pointer is kept alive as long as the operation. `wait` makes the threads synchronize first,
    because the operation reads what the ones before it write.
    """

    _fields_ = _ints("kind", "wait")
    number: int

    def __init__(self, *, wait: bool = True, **fields: Tensor | float | None) -> None:
        self.tensors = [value for value in fields.values() if isinstance(value, Tensor)]
        known = {field[0] for field in self._fields_}
        assert fields.keys() == known, f"{type(self).__name__}: {fields.keys() ^ known}"
        pointers = {n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in fields.items()}
        super().__init__(kind=self.number, wait=wait, **pointers)


class Product(Op):
    number = 0
    _fields_ = [
        *_ints("x", "y", "add", "is_short"),
        *_pointers("w", "bias"),
        *_ints("H", "K", "N", "x_row", "x_head", "y_row", "y_head", "w_head"),
    ]


class Norm(Op):
    number = 1
    _fields_ = [*_ints("x", "y", "D"), *_pointers("weight"), ("eps", c_float)]


class Heads(Op):
    number = 2
    _fields_ = [
        *_ints("x", "y", "H", "size", "x_row", "x_head", "x_at", "y_row", "y_head", "y_at"),
        *_ints("normed", "turn_at", "turned", "rotation"),
        *_pointers("weight"),
        ("eps", c_float),
    ]


class Attend(Op):
    number = 3
    _fields_ = [*_ints("x", "y", "H", "G", "D", "E", "shared"), ("scale", c_float)]


class Gate(Op):
    number = 4
    _fields_ = _ints("x", "up", "I")


class Route(Op):
    number = 5
    _fields_ = [
        *_ints("x", "chosen", "share", "E", "k", "groups", "best_groups", "sigmoid", "of_a_group", "to_one"),
        *_pointers("bias"),
        ("scale", c_float),
    ]


class ExpertsOp(Op):
    number = 6
    _fields_ = [
        *_ints("x", "chosen", "share", "middle", "parts", "y", "add", "is_short"),
        *_pointers("up", "down"),
        *_ints("E", "k", "D", "I", "up_head", "down_head"),
    ]


class SegmentPointers(Structure):
    """The struct Segment of kernels.cpp."""

    _fields_ = [*_ints("begin", "T"), *_pointers("tables", "page0", "row", "first", "last"), *_ints("max_pages")]


class Call(Structure):
    """The struct Call of kernels.cpp."""

    _fields_ = [
        *_ints("T"),
        *_pointers("x", "y", "arena", "cos", "sin", "page", "offset", "segments", "keys", "values"),
        *_ints("angle_row", "angle_step", "num_segments", "page_stride", "page_tokens"),
    ]


class Columns:
    """Allocates columns of the scratch memory, float32 values of each token. Nothing is freed."""

    def __init__(self) -> None:
        self.width = 0

    def take(self, numbers: int) -> int:
        column = self.width
        self.width += numbers + numbers % 2  # the int64 index of an expert takes two
        return column


class Program:
    """Operations in order, with scratch memory of `width` numbers per token."""

    def __init__(self, library: Library, operations: Sequence[Op], width: int) -> None:
        self.operations, self.width = list(operations), width
        self._run, self._count = library.run, len(self.operations)
        self._pointers = (c_void_p * self._count)(*map(ctypes.addressof, self.operations))

    def __call__(self, call: Call, scratch: ScratchMemory | None = None) -> None:
        if self.width:
            arena = (scratch or ScratchMemory()).floats(self.width * call.T)  # this name keeps it alive meanwhile
            call.arena = arena.data_ptr()
        self._run(self._pointers, self._count, ctypes.addressof(call))


class GroupPointers:
    """The slots and visible keys of a batch's tokens in one page group, as pointers.

    Raises AssertionError if any of them lies outside the group's `num_pages` pages.
    """

    def __init__(self, batch: Batch, name: str, num_pages: int) -> None:
        self.slots = batch.slots[name]
        self.slots.check(num_pages)
        seen = [(segment.tokens, segment.keys[name]) for segment in batch.segments]
        for _, keys in seen:
            keys.check(num_pages)
        self.num_segments = len(seen)
        self.segments = (SegmentPointers * len(seen))(*(_segment(tokens, keys) for tokens, keys in seen))


def _segment(tokens: slice, keys: Keys) -> SegmentPointers:
    return SegmentPointers(
        begin=tokens.start,
        T=tokens.stop - tokens.start,
        tables=keys.pages_RP.data_ptr(),
        page0=keys.first_page_R.data_ptr(),
        row=keys.row_T.data_ptr(),
        first=keys.first_T.data_ptr(),
        last=keys.last_T.data_ptr(),
        max_pages=keys.pages_RP.shape[1],
    )


class BatchArguments:
    """Arguments that all layers share: those of one batch with one set of position embeddings.

    The batch owns this object (`Batch.prepared`), so it must not refer to the batch: a cycle would keep tensors alive.
    """

    def __init__(self, batch: Batch, positions: Positions, groups: dict[str, GroupPointers]) -> None:
        self.positions, self.groups = positions, groups
        self.call = Call(T=batch.num_tokens)
        self._set_angles(positions)

    def _set_angles(self, positions: Positions) -> None:
        if isinstance(positions, Tensor):  # complex: cos and sin of each pair
            self._kept: tuple[Tensor, ...] = (torch.view_as_real(positions[0]).contiguous(),)
            cos = self._kept[0]
            self.call.cos, self.call.sin, self.call.angle_step = cos.data_ptr(), cos.data_ptr() + 4, 2
            self.call.angle_row = cos.shape[1] * 2
        else:
            self._kept = tuple(part[0].contiguous() for part in positions)
            self.call.cos, self.call.sin = (part.data_ptr() for part in self._kept)
            self.call.angle_step, self.call.angle_row = 1, self._kept[0].shape[1]
        assert all(part.dtype == torch.float32 and part.shape[0] == self.call.T for part in self._kept)


def call_of(batch: Batch, positions: Positions, group_name: str, key: Slab, value: Slab) -> Call:
    """Return the batch's call, with the page group and the slabs of one layer filled in.

    The batch keeps what is prepared: the next layers reuse all of it, other position embeddings reuse the groups.
    """
    arguments = batch.prepared.get("arguments")
    if not isinstance(arguments, BatchArguments) or arguments.positions is not positions:
        groups = arguments.groups if isinstance(arguments, BatchArguments) else {}
        arguments = batch.prepared["arguments"] = BatchArguments(batch, positions, groups)
    group = arguments.groups.get(group_name)
    if group is None:
        group = arguments.groups[group_name] = GroupPointers(batch, group_name, key.num_pages)
    call, slots = arguments.call, group.slots
    call.page, call.offset = slots.page_T.data_ptr(), slots.offset_T.data_ptr()
    call.segments, call.num_segments = ctypes.addressof(group.segments), group.num_segments
    call.keys, call.values, call.page_stride = key.address, value.address, key.page_stride
    call.page_tokens = key.page_tokens
    return call


def run_by_row(program: Program, x: Tensor, numbers: int) -> Tensor:
    """Run a program that needs neither pages nor angles: [..., in] -> [..., numbers]."""
    assert x.dtype == torch.float32
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], numbers)
    program(Call(T=x.numel() // x.shape[-1], x=x.data_ptr(), y=y.data_ptr()))
    return y
