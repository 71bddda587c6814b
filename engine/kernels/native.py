"""The seam to kernels.cpp: its libraries, and the arguments that its functions trust. float32 on a CPU.

T = tokens, H = query heads, G = key heads, D = key size, E = value size
"""

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
LEVELS = {"v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"), "v3": ("avx2", "fma")}
NAMES = {"v4": "native (AVX-512)", "v3": "native (AVX2)"}


class Attention(Structure):
    """Argument of `attend`; see kernels.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "keys", "values", "out", "tables", "row", "first", "last", "page0")),
        *((name, c_int64) for name in ("T", "H", "G", "D", "E", "key_row", "value_row", "page_stride", "max_pages")),
        ("page_tokens", c_int64),
        ("scale", c_float),
    ]


class Experts(Structure):
    """Argument of `experts_*`; see kernels.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "chosen", "share", "up", "down", "middle", "parts", "out")),
        *((name, c_int64) for name in ("T", "k", "E", "D", "I", "up_stride", "down_stride")),
    ]


class Library:
    """The functions of one build."""

    def __init__(self, file: Path, name: str) -> None:
        self.name = name
        found = ctypes.CDLL(str(file))
        self.panel: int = found.panel_columns()
        pointers, sizes = [c_void_p] * 4, [ctypes.c_long] * 3
        self.product = {torch.float32: found.product_float32, torch.bfloat16: found.product_bfloat16}
        self.experts = {torch.float32: found.experts_float32, torch.bfloat16: found.experts_bfloat16}
        self.rms_norm, self.attend = found.rms_norm, found.attend
        for function in self.product.values():
            function.argtypes, function.restype = [*pointers, *sizes], None
        for function in self.experts.values():
            function.argtypes, function.restype = [POINTER(Experts)], None
        self.rms_norm.argtypes = [*[c_void_p] * 3, *[ctypes.c_long] * 2, c_float]
        self.attend.argtypes = [POINTER(Attention)]
        self.rms_norm.restype = self.attend.restype = None


@cache
def library() -> Library | None:
    """The best build that this processor runs; None if there is none."""
    return next(builds(FOLDER), None)


def builds(folder: Path) -> Iterator[Library]:
    """All in `folder` that this processor runs, the best first."""
    flags = _processor_flags()
    for level, wanted in LEVELS.items():
        if flags.issuperset(wanted):
            yield from (Library(file, NAMES[level]) for file in sorted(folder.glob(f"_kernels_{level}.*so")))


def native_for(weight: Tensor) -> Library | None:
    """The library, if it computes with such weights: float32 on the CPU."""
    return library() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def lossless(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number of it."""
    return torch.equal(weight.bfloat16().float(), weight)


def packed(weight_NK: Tensor, panel: int, dtype: torch.dtype) -> Tensor:
    """Matrices [..., N, K] in panels [..., ceil(N / panel), K, panel], padded with zeros."""
    num_out, num_in = weight_NK.shape[-2:]
    padded = weight_NK.new_zeros(*weight_NK.shape[:-2], -(-num_out // panel) * panel, num_in, dtype=dtype)
    padded[..., :num_out, :] = weight_NK
    panels: Tensor = padded.unflatten(-2, (-1, panel)).mT
    if dtype == torch.float32:
        return panels.contiguous()
    low, high = panels.split(panel // 2, dim=-1)
    pairs: Tensor = torch.stack([low, high], dim=-1).flatten(-2).contiguous()
    return pairs


def unpacked(panels: Tensor, num_out: int) -> Tensor:
    """One matrix again, float32 [N, K]."""
    if panels.dtype == torch.bfloat16:
        panels = torch.cat(panels.unflatten(2, (-1, 2)).unbind(3), dim=2)
    matrix: Tensor = panels.float().mT.reshape(-1, panels.shape[1])[:num_out]
    return matrix
