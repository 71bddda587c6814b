"""The computing device: its name, its memory, and copying to it."""

import ctypes
import mmap
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

Numbers = float | Sequence[float] | Sequence[Sequence[float]]


def cpu_model() -> str:
    """Return the processor's name as the operating system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Return the name of the accelerator, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process on the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_device(values: Sequence[Numbers], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy numbers to the device without waiting for its running work (unpinned memory is staged before return)."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


HUGE_PAGE = 2**21


def mapped(num_bytes: int) -> Tensor:
    """Map `num_bytes` of `uint8` zeros directly from the operating system, in huge pages where available.

    Physical memory is taken on first access, so that mapping gigabytes takes no time.
    """
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE_PAGE
    return whole[first : first + num_bytes]


class ScratchMemory:
    """Working memory that one engine's kernels reuse from call to call. It only grows, holds no value between calls,
    and must not be used by two threads at once."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def floats(self, count: int) -> Tensor:
        """Return at least `count` float32 numbers with undefined values."""
        if self._buffer.numel() < count:
            with torch.inference_mode(False):  # otherwise only inference mode could write to it
                self._buffer = torch.empty(count)
        return self._buffer


def release_freed_memory() -> None:
    """Return freed memory to the operating system. Without this, the C library keeps a model's worth after loading."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
