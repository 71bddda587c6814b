"""Provides both ends of the handoff benchmark: raw blocks, transfers with records, and the other process."""

import hashlib
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from nixl._api import nixl_agent, nixl_agent_config

from engine.clock import MonotonicClock
from engine.config import Config
from engine.pages import CacheLayout, Entry, PageStore
from engine.transfer import NixlTransfer, PageRead, ReadState, new_agent_name
from engine.types import AgentEntry, Handoff, Request
from local.build import Builder, set_threads

ANSWER_SECONDS = 120.0  # far longer than any answer takes: afterwards the other process has failed
LOOK_SECONDS = 0.001
SWEEP_BYTES = 2**28  # more than any cache holds
READY = "ready"
GROUP = "full"


@dataclass(frozen=True, kw_only=True)
class BlockEntry:
    """The address of a raw block: its agent's metadata, and the block's address and size in bytes."""

    name: str
    metadata: bytes
    address: int
    num_bytes: int


class Block:
    """One contiguous block of memory under a NIXL agent of its own: no pages, no engine, and no thread, which would
    take a core from the measured processes."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = torch.ones(num_bytes, dtype=torch.uint8)
        name = new_agent_name("block")
        self._agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self._registered = self._agent.register_memory([(self.memory.data_ptr(), num_bytes, 0, "")], "DRAM")
        metadata = self._agent.get_agent_metadata()
        self.entry = BlockEntry(name=name, metadata=metadata, address=self.memory.data_ptr(), num_bytes=num_bytes)
        self._met: set[str] = set()

    def read(self, peer: BlockEntry, num_bytes: int, cold: bool = False) -> float:
        """Read the first `num_bytes` of the peer's block into ours, in one piece, and return the seconds. `cold`: first
        empty the processor's caches, as a step of an engine does."""
        if peer.name not in self._met:
            self._agent.add_remote_agent(peer.metadata)
            self._met.add(peer.name)
        self.memory[:num_bytes] = 0
        if cold:
            forget()
        started = time.perf_counter()
        ours = self._agent.get_xfer_descs([(self.entry.address, num_bytes, 0)], "DRAM")
        theirs = self._agent.get_xfer_descs([(peer.address, num_bytes, 0)], "DRAM")
        handle = self._agent.initialize_xfer("READ", ours, theirs, peer.name)
        state = self._agent.transfer(handle)
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        seconds = time.perf_counter() - started
        assert state == "DONE" and self.memory[:num_bytes].all(), f"a raw read ended as {state}"
        self._agent.release_xfer_handle(handle)
        return seconds

    def look(self) -> None:
        """Answer a reader that wants to connect."""
        self._agent.get_new_notifs()

    def close(self) -> None:
        for name in self._met:
            self._agent.remove_remote_agent(name)
        self._agent.deregister_memory(self._registered)


@dataclass(frozen=True)
class ReadRecord:
    """A completed read of an engine: seconds from posting it to seeing it done, number of descriptors, and the local
    pages of each group."""

    seconds: float
    num_descriptors: int
    pages: dict[str, tuple[int, ...]]


class WatchedTransfer(NixlTransfer):
    """NIXL, with a record of every read."""

    def __init__(self, name: str, store: PageStore) -> None:
        super().__init__(name, store)
        self.store = store
        self.records: list[ReadRecord] = []
        self._running: dict[int, tuple[float, AgentEntry, list[PageRead]]] = {}

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        started = time.perf_counter()
        number = super().read(peer, reads)
        self._running[number] = (started, peer, reads)
        return number

    def poll(self, read: int) -> ReadState:
        state = super().poll(read)
        if state == ReadState.DONE:
            ended = time.perf_counter()
            started, peer, reads = self._running.pop(read)
            pages = {part.group: part.local_pages for part in reads}
            num_descriptors = len(self._descriptors(peer, reads)[0])
            self.records.append(ReadRecord(ended - started, num_descriptors, pages))
        return state


def forget() -> None:
    """Fill the processor's caches with other data, as a step of an engine does."""
    torch.ones(SWEEP_BYTES // 8, dtype=torch.int64).sum()


def digest(store: PageStore, pages: Mapping[str, Sequence[int]]) -> str:
    """Return a hash of the target model's part of these pages, in order."""
    hashed = hashlib.sha256()
    for group, ids in sorted(pages.items()):
        target_bytes = store.layout.groups[group].target_bytes
        for page in ids:
            hashed.update(store.records[group][page, :target_bytes].numpy().tobytes())
    return hashed.hexdigest()


def page_store(page_bytes: int, num_pages: int) -> PageStore:
    """Return pages of any size, without a model: one entry of `page_bytes`, each page filled with its mark."""
    layout = CacheLayout.of([Entry(layer=0, name="bytes", shape=(page_bytes // 16,), dtype=torch.uint8)], 16)
    store = PageStore(layout, {GROUP: num_pages}, torch.device("cpu"))
    for page, record in enumerate(store.records[GROUP]):
        record[:] = mark(page)
    return store


def mark(page: int) -> int:
    """Return the value of every byte of a page, never zero."""
    return page % 255 + 1


class Peer:
    """Spawns a process that runs `serve`, and exchanges messages with it."""

    def __init__(self, config: Config) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, config), daemon=True)
        self._process.start()
        assert self.answer() == READY

    def tell(self, command: str, *arguments: Any) -> None:
        self._pipe.send((command, *arguments))

    def answer(self) -> Any:
        """Return the next message. Raises TimeoutError if none comes."""
        if not self._pipe.poll(ANSWER_SECONDS):
            raise TimeoutError(f"the other process has sent no answer for {ANSWER_SECONDS} s")
        return self._pipe.recv()

    def ask(self, command: str, *arguments: Any) -> Any:
        self.tell(command, *arguments)
        return self.answer()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.tell("stop")
        self._process.join(ANSWER_SECONDS)


class Served:
    """Carries out commands in the other process, and answers through the pipe."""

    def __init__(self, pipe: Connection, config: Config) -> None:
        self._pipe = pipe
        self._clock = MonotonicClock()
        self._stores: list[PageStore] = []
        self._held: tuple[NixlTransfer, Block] | None = None
        self.engine = Builder(config, config.prefill).prefiller(new_agent_name("prefill"), self._join)
        self.engine.warm_up()

    def add(self, request: Request) -> None:
        """Prefill a request; `step` answers with its handoff and the time, by the clock that all processes share."""
        self.engine.add(request)

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)

    def digest(self, pages: dict[str, tuple[int, ...]]) -> None:
        self._pipe.send(digest(self._stores[0], pages))

    def hold(self, page_bytes: int, num_pages: int) -> None:
        """Make pages without an engine and a raw block of the same size, in place of the earlier ones. Answers with the
        entries of both."""
        if self._held is not None:
            for held in self._held:
                held.close()
        store = page_store(page_bytes, num_pages)
        transfer = NixlTransfer(new_agent_name("pages"), store)
        block = Block(page_bytes * num_pages)
        self._held = transfer, block
        self._pipe.send((transfer.entry, block.entry))

    def rewrite(self) -> None:
        """Write the raw block again, then empty the caches, as an engine does with its pages; answers when done."""
        assert self._held is not None
        self._held[1].memory.fill_(1)
        forget()
        self._pipe.send(READY)

    def step(self) -> None:
        if self._held is not None:
            transfer, block = self._held
            transfer.notifications()
            block.look()
        for event in self.engine.step():
            if isinstance(event, Handoff):
                self._pipe.send((event, self._clock.now()))

    def seconds_to_deadline(self) -> float | None:
        if self._held is not None:
            return LOOK_SECONDS
        deadline = self.engine.next_deadline()
        return None if deadline is None else max(0.0, deadline - self._clock.now())

    def _join(self, name: str, store: PageStore) -> NixlTransfer:
        self._stores.append(store)
        return NixlTransfer(name, store)


@torch.inference_mode()
def serve(pipe: Connection, config: Config) -> None:
    """Run a prefill engine as a replica's thread does: sleep until its deadline or a command."""
    set_threads(config.prefill, config)
    served = Served(pipe, config)
    pipe.send(READY)
    while True:
        if pipe.poll(served.seconds_to_deadline()):
            command, *arguments = pipe.recv()
            if command == "stop":
                return
            getattr(served, command)(*arguments)
        served.step()
