"""The section `transfer`: how pages travel between the pools."""

from typing import Annotated

from pydantic import Field

from engine.section import Seconds, Section


class TransferConfig(Section):
    """The transfer of pages from prefill to decode replicas by NIXL."""

    num_threads: Annotated[int, Field(ge=0)] = 0
    """Extra UCX worker threads of each NIXL agent."""
    progress_thread: bool = False
    """Whether each NIXL agent has a thread that drives transfers, which takes a core. Without it, a read over TCP waits
    for the prefill replica's current step to end; reads over RDMA and shared memory do not."""
    poll_seconds: Seconds = 0.001
    """Seconds between two looks of a waiting engine for messages and finished reads."""
