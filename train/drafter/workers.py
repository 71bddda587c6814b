"""The processes that train together; a single one is a group of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(days=7)  # the other workers wait while the first has the target write text


@dataclass(frozen=True)
class Workers:
    """This worker, number `rank` of `count`. With several, torch.distributed must be initialised."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the workers of this process's group; without a group, this process alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """Return which of `count` sequences this worker computes."""
        return list(range(self.rank, count, self.count))

    def add(self, values: Tensor) -> None:
        """Sum `values` over all workers, in place."""
        if self.count > 1:
            dist.all_reduce(values)

    def add_gradients(self, model: nn.Module) -> None:
        """Sum all gradients over all workers, in place and in one message. A worker without a gradient adds zero."""
        if self.count == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """Return when all workers have called this."""
        if self.count > 1:
            dist.barrier()


ALONE = Workers()


@contextmanager
def joined(device: str) -> Iterator[tuple[Workers, str]]:
    """Join the process group that torchrun's environment names, if any; yield the workers and this one's device."""
    if "WORLD_SIZE" not in os.environ:
        yield Workers(), device
        return
    cuda = torch.device(device).type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Workers.of_this_process(), f"cuda:{os.environ['LOCAL_RANK']}" if cuda else device
    finally:
        dist.destroy_process_group()
