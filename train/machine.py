"""The machine that trains: what it is, and how its memory is used."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

from engine.device import cpu_model


def keep_freed_memory() -> None:
    """Lets glibc reuse large freed blocks: returning them costs training on CPU a sixth of its speed."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def machine() -> str:
    """The processor (or accelerator) and its number of cores, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores of a shared CPU machine ({cpu_model()}, {capability}), no GPU"
