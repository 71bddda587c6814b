"""Programs of kernels.cpp: operations that one call runs, and the arguments that they trust.

An operation reads and writes *places*: X and Y, which a call brings along, or columns of the arena, where everything in
between lies. Nothing in a program depends on how many tokens there are, or whose pages they write.

T = tokens of a call, H = query heads, G = key heads, D = key size, E = value size
"""

import ctypes
import threading
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from engine.batch import Batch, Keys
from engine.kernels.native import Library
from engine.pages import Slab

X, Y, NOWHERE, KEYS, VALUES = -1, -2, -3, -4, -5
HALVES, PAIRS_TO_HALVES, PAIRS = range(3)  # which numbers a rotation takes together, and where it leaves them


class Op(Structure):
    """One operation; the fields of each kind are those of kernels.cpp. Tensors may be given for pointers: they are kept
    as long as the operation."""

    _fields_ = [("kind", c_int64), ("wait", c_int64)]
    number: int

    def __init__(self, *, wait: bool = True, **fields: Any) -> None:
        self.tensors = [value for value in fields.values() if isinstance(value, Tensor)]
        known = {field[0] for field in self._fields_}
        assert fields.keys() == known, f"{type(self).__name__}: {fields.keys() ^ known}"
        pointers = {n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in fields.items()}
        super().__init__(kind=self.number, wait=wait, **pointers)


def _whole(*names: str) -> list[Any]:
    return [(name, c_int64) for name in names]


class Product(Op):
    number = 0
    _fields_ = [
        *_whole("x", "y", "add", "is_short"),
        ("w", c_void_p),
        ("bias", c_void_p),
        *_whole("H", "K", "N", "x_row", "x_head", "y_row", "y_head", "w_head"),
    ]


class Norm(Op):
    number = 1
    _fields_ = [*_whole("x", "y", "D"), ("weight", c_void_p), ("eps", c_float)]


class Heads(Op):
    number = 2
    _fields_ = [
        *_whole("x", "y", "H", "size", "x_row", "x_head", "x_at", "y_row", "y_head", "y_at"),
        *_whole("normed", "turn_at", "turned", "rotation"),
        ("weight", c_void_p),
        ("eps", c_float),
    ]


class Attend(Op):
    number = 3
    _fields_ = [*_whole("x", "y", "H", "G", "D", "E", "shared"), ("scale", c_float)]


class Gate(Op):
    number = 4
    _fields_ = _whole("x", "up", "I")


class Route(Op):
    number = 5
    _fields_ = [
        *_whole("x", "chosen", "share", "E", "k", "groups", "best_groups", "sigmoid", "of_a_group", "to_one"),
        ("bias", c_void_p),
        ("scale", c_float),
    ]


class Experts(Op):
    number = 6
    _fields_ = [
        *_whole("x", "chosen", "share", "middle", "parts", "y", "add", "is_short"),
        ("up", c_void_p),
        ("down", c_void_p),
        *_whole("E", "k", "D", "I", "up_head", "down_head"),
    ]


class SegmentPointers(Structure):
    """kernels.cpp: Segment."""

    _fields_ = [
        *_whole("begin", "T"),
        *((name, c_void_p) for name in ("tables", "page0", "row", "first", "last")),
        *_whole("max_pages"),
    ]


class Call(Structure):
    """kernels.cpp: Call."""

    _fields_ = [
        *_whole("T"),
        *((name, c_void_p) for name in ("x", "y", "arena", "cos", "sin", "page", "offset", "segments")),
        *((name, c_void_p) for name in ("keys", "values")),
        *_whole("angle_row", "angle_step", "num_segments", "page_stride", "page_tokens"),
    ]


class Columns:
    """Hands out places in the arena, so many numbers per token each. What is handed out twice is used twice."""

    def __init__(self) -> None:
        self.width = 0

    def take(self, numbers: int) -> int:
        place = self.width
        self.width += numbers + numbers % 2  # an expert's number takes the room of two
        return place


class Program:
    """Operations in their order, with what they write in between."""

    def __init__(self, library: Library, operations: Sequence[Op], width: int) -> None:
        self.operations, self.width = list(operations), width
        self._run, self._count = library.run, len(self.operations)
        self._pointers = (c_void_p * self._count)(*map(ctypes.addressof, self.operations))

    def __call__(self, call: Call) -> None:
        if self.width:
            call.arena = _arena(self.width * call.T).data_ptr()
        self._run(self._pointers, self._count, ctypes.addressof(call))


class Group:
    """A step's tokens in one page group: where their entries go, and what they see. Raises AssertionError if anything
    leads out of `num_pages` pages."""

    def __init__(self, batch: Batch, name: str, num_pages: int) -> None:
        self.slots = batch.slots[name]
        self.slots.check(num_pages)
        seen = [(segment.tokens, segment.keys[name]) for segment in batch.segments]
        self.keys: list[Keys] = [keys for _, keys in seen]
        for keys in self.keys:
            keys.check(num_pages)
        self.segments = (SegmentPointers * len(seen))(*(_pointers(tokens, keys) for tokens, keys in seen))


def _pointers(tokens: slice, keys: Keys) -> SegmentPointers:
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


class Step:
    """What the layers of one step share, prepared when the first of them asks."""

    def __init__(self, batch: Batch, positions: Any, groups: dict[str, Group]) -> None:
        self.batch, self.positions, self.groups = batch, positions, groups
        self.call = Call(T=batch.num_tokens)
        self._set_angles(positions)

    def _set_angles(self, positions: Any) -> None:
        if isinstance(positions, Tensor):  # complex: cos and sin of each pair
            self._kept = (torch.view_as_real(positions[0]).contiguous(),)
            cos = self._kept[0]
            self.call.cos, self.call.sin, self.call.angle_step = cos.data_ptr(), cos.data_ptr() + 4, 2
            self.call.angle_row = cos.shape[1] * 2
        else:
            self._kept = tuple(part[0].contiguous() for part in positions)
            self.call.cos, self.call.sin = (part.data_ptr() for part in self._kept)
            self.call.angle_step, self.call.angle_row = 1, self._kept[0].shape[1]
        assert all(part.dtype == torch.float32 and part.shape[0] == self.call.T for part in self._kept)

    def aim(self, group_name: str, key: Slab, value: Slab) -> Call:
        """The call, at the pages of one layer."""
        group = self.groups.get(group_name)
        if group is None:
            group = self.groups[group_name] = Group(self.batch, group_name, key.num_pages)
        call, slots = self.call, group.slots
        call.page, call.offset = slots.page_T.data_ptr(), slots.offset_T.data_ptr()
        call.segments, call.num_segments = ctypes.addressof(group.segments), len(group.keys)
        call.keys, call.values, call.page_stride = key.address, value.address, key.page_stride
        call.page_tokens = key.page_tokens
        return call


class _Thread(threading.local):
    """Each thread's own working memory, and the step that it is in."""

    arena = torch.empty(0)
    step: Step | None = None


_thread = _Thread()


def step_of(batch: Batch, positions: Any) -> Step:
    """The step of these very tokens; the next layers get the same one, and with other positions the same groups."""
    step = _thread.step
    if step is None or step.batch is not batch:
        step = _thread.step = Step(batch, positions, {})
    elif step.positions is not positions:
        step = _thread.step = Step(batch, positions, step.groups)
    return step


def _arena(numbers: int) -> Tensor:
    """So many numbers at least, whatever is in them."""
    if _thread.arena.numel() < numbers:
        with torch.inference_mode(False):  # whatever mode it is first asked for in, every other may write to it
            _thread.arena = torch.empty(numbers)
    return _thread.arena


def rows_through(program: Program, x: Tensor, numbers: int) -> Tensor:
    """A program without pages or angles: [..., in] -> [..., numbers]."""
    assert x.dtype == torch.float32
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], numbers)
    num_tokens = x.numel() // x.shape[-1]
    call = Call(T=num_tokens, x=x.data_ptr(), y=y.data_ptr())
    program(call)
    return y
