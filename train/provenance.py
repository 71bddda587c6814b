"""The machine that a training runs on: its memory settings, its threads, and what a model's card says about it."""

import ctypes
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from engine.device import cpu_model


def configure_process(threads: int) -> None:
    """Use `threads` threads (0: one for each core), and keep freed memory in the process.

    Returning large freed blocks to the kernel costs training on a CPU a sixth of its speed.
    """
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def provenance(*packages: str) -> dict[str, str | dict[str, str]]:
    """Return today's date, the machine and the versions of `packages`, for the record of a training."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine_description(),
        "versions": {package: version(package) for package in packages},
    }


def machine_description() -> str:
    """Return the accelerator's name, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores of a shared CPU machine ({cpu_model()}, {capability}), no GPU"
