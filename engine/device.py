"""What computes here: its names, its memory, the way there."""

import ctypes
import mmap
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The accelerator's own name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on the device. The host does not wait for what runs there: memory that is not pinned is
    copied aside before the call returns."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


HUGE_PAGE = 2**21


def mapped(num_bytes: int) -> Tensor:
    """`uint8` zeros straight from the operating system, in huge pages where it has them. Memory is taken when it is
    first touched: gigabytes start at once, and fill as they are used."""
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE_PAGE
    return whole[first : first + num_bytes]


def give_back() -> None:
    """Let the operating system have what was freed: after loading, the C library would keep a model's worth of it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
