"""The section `transfer`: how pages travel between the pools."""

from typing import Annotated

from pydantic import Field

from engine.section import Seconds, Section


class TransferConfig(Section):
    """How pages travel between the pools."""

    num_threads: Annotated[int, Field(ge=0)] = 0
    """Extra UCX worker threads in each NIXL agent."""
    progress_thread: bool = False
    """A thread in each NIXL agent that drives transfers. It spins and takes a core. Without it a read over TCP waits
    for the prefill engine's step to end; RDMA and shared memory need no one on that side."""
    poll_seconds: Seconds = 0.001
    """How often a waiting engine looks for messages and finished reads."""
