"""The builds of kernels.cpp (float32 on a CPU), and the order in which they read matrices."""

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
LEVELS = {"v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"), "v3": ("avx2", "fma")}
NAMES = {"v4": "native (AVX-512)", "v3": "native (AVX2)"}


class Library:
    """The functions of one build: `run(operations, count, call)`. `panel` is the number of columns of a panel."""

    def __init__(self, file: Path, name: str) -> None:
        self.name = name
        found = ctypes.CDLL(str(file))
        self.panel: int = found.panel_columns()
        self.run = found.run
        self.run.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
        self.run.restype = None


@cache
def library() -> Library | None:
    """Return the fastest build that this processor runs, or None."""
    return next(builds(FOLDER), None)


def builds(folder: Path) -> Iterator[Library]:
    """Yield the builds in `folder` that this processor runs, the fastest first."""
    flags = _processor_flags()
    for level, wanted in LEVELS.items():
        if flags.issuperset(wanted):
            yield from (Library(file, NAMES[level]) for file in sorted(folder.glob(f"_kernels_{level}.*so")))


def suits(weight: Tensor) -> bool:
    """Return whether kernels.cpp computes with such weights."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def lossless(weight: Tensor) -> bool:
    """Return whether bfloat16 holds every number of `weight` exactly."""
    return torch.equal(weight.bfloat16().float(), weight)


def packed(weight_NK: Tensor, panel: int, dtype: torch.dtype) -> Tensor:
    """Pack matrices [..., N, K] into panels [..., ceil(N / panel), K, panel], padded with zeros."""
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
    """Undo `packed`: return float32 matrices [..., N, K]."""
    if panels.dtype == torch.bfloat16:
        panels = torch.cat(panels.unflatten(-1, (-1, 2)).unbind(-1), dim=-1)
    matrices: Tensor = panels.float().mT.flatten(-3, -2)[..., :num_out, :]
    return matrices
