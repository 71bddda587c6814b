"""What the figures of a benchmark were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from engine.device import cpu_model

PACKAGES = ("torch", "transformers", "nixl", "ray")


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, memory, device, and how busy the machine was (load over one minute)."""
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """What of Python and PACKAGES is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
