"""The processes that train together. One by itself is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=7)  # the others wait while the first has the target write


@dataclass(frozen=True)
class Workers:
    """This one among `count`. With several, torch.distributed must be up."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Workers:
        """Those of the process group that this process belongs to, if there is one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """Which of `count` sequences are this worker's."""
        return list(range(self.rank, count, self.count))

    def add(self, values: Tensor) -> None:
        """In place, over all workers."""
        if self.count > 1:
            dist.all_reduce(values)

    def add_gradients(self, model: nn.Module) -> None:
        """In place, over all workers, in one message. A worker that had nothing to do adds nothing."""
        if self.count == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]  # the same on all
        )
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Workers()


@contextmanager
def joined(device: str) -> Iterator[tuple[Workers, str]]:
    """The process group that torchrun's environment names, and this worker's device; alone without one."""
    if "WORLD_SIZE" not in os.environ:
        yield Workers(), device
        return
    cuda = torch.device(device).type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Workers.here(), f"cuda:{os.environ['LOCAL_RANK']}" if cuda else device
    finally:
        dist.destroy_process_group()
