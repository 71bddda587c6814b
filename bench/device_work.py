"""What a GPU does during a call: how long it computes, with how many kernels, and how long it takes as a CUDA graph."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from bench.ceiling import synchronize
from bench.console import TableRow

CALLS = 3
NAME_CHARACTERS = 90


@dataclass(frozen=True)
class DeviceWork:
    """The work of one call, on average: the seconds in which the device computed or copied, the number of kernels and
    copies, and the seconds of each kernel, longest first. `waits` are lines where the host waited for the device."""

    seconds: float
    launches: float
    kernels: dict[str, float]
    waits: list[str]


def work_of(function: Callable[[], object], device: torch.device) -> DeviceWork | None:
    """Profile a call; return None without a GPU. The profiler slows the host but not the kernels, so the time between
    kernels must be measured without it."""
    if device.type != "cuda":
        return None
    waits = _waits(function)
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            function()
        synchronize(device)
    on_device = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    kernels: dict[str, float] = {}
    for event in sorted(on_device, key=lambda e: -e.self_device_time_total):
        name = event.key[:NAME_CHARACTERS]
        kernels[name] = kernels.get(name, 0.0) + event.self_device_time_total / 1e6 / CALLS
    return DeviceWork(
        seconds=sum(kernels.values()),
        launches=sum(event.count for event in on_device) / CALLS,
        kernels=kernels,
        waits=waits,
    )


def _waits(function: Callable[[], object]) -> list[str]:
    """Return the lines of Python in which torch waits for the device during a call."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchronizing" in str(w.message)]


def columns(work: DeviceWork | None, seconds: float) -> TableRow:
    """Return the columns of a table for a call of `seconds`. `idle` is the share in which the device did nothing."""
    return {
        "device_ms": work and work.seconds * 1e3,
        "idle": work and 1 - work.seconds / seconds,
        "launches": work and work.launches,
        "waits": work and len(work.waits),
    }


def median_seconds(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median seconds of a call, after a warm-up, including the wait for the device."""
    seconds = []
    for _ in range(1 + rounds):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


class Replay:
    """Captures a call in a CUDA graph and replays it, without launches, on the same memory."""

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device) -> None:
        """Raises RuntimeError if the call cannot be captured: it waits for the device."""
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # what is allocated at first use must exist before the capture
            function()
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.output = function()

    def __call__(self) -> None:
        self._graph.replay()
