"""Runs another process with pages and a NIXL agent, which answers every lease command with `held` until stopped."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from types import TracebackType

import torch
from torch import Tensor

from engine.pages import CacheLayout, Entry, PageStore
from engine.transfer import LeaseMessage, NixlTransfer, PageRead, ReadState
from engine.types import AgentEntry

ENTRIES = [
    Entry(layer=0, name="k", shape=(40,), dtype=torch.float32),
    Entry(layer=1, name="k", shape=(3,), dtype=torch.float32, window=20),
]
DRAFTER_ENTRY = Entry(layer=1, name="k", shape=(9,), dtype=torch.float32, window=20, part="drafter")
WAIT_SECONDS = 15.0  # far beyond what anything here takes; a hang is a failure, not a long test


def make_store(entries: list[Entry], seed: int, num_pages: int = 12) -> PageStore:
    layout = CacheLayout.of(entries, 16)
    store = PageStore(layout, dict.fromkeys(layout.groups, num_pages), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for records in store.records.values():
        records.copy_(torch.randint(0, 256, records.shape, generator=generator, dtype=torch.uint8))
    return store


def serve(pipe: Connection, name: str, entries: list[Entry], num_pages: int) -> None:
    torch.set_num_threads(1)
    transfer = NixlTransfer(name, make_store(entries, seed=1, num_pages=num_pages))
    pipe.send(transfer.entry)
    while not pipe.poll(0.001):
        for asker, message in transfer.notifications():
            transfer.notify(asker, LeaseMessage(command=message.command, nonce=message.nonce, held=True))
    transfer.close()


class Peer:
    """The process, from outside. `entry` is how to find its agent, `records` what its pages hold."""

    def __init__(self, name: str, entries: list[Entry] = ENTRIES, num_pages: int = 12) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, entries, num_pages), daemon=True)
        self._process.start()
        self.records: dict[str, Tensor] = make_store(entries, seed=1, num_pages=num_pages).records
        assert self._pipe.poll(60), "the peer did not start"
        self.entry: AgentEntry = self._pipe.recv()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process.is_alive():
            self._pipe.send("stop")
        self._process.join(WAIT_SECONDS)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop_answering(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(WAIT_SECONDS)


def finished(transfer: NixlTransfer, peer: Peer, *reads: PageRead) -> ReadState:
    """Read, and poll until it is over."""
    return ended(transfer, transfer.read(peer.entry, list(reads)))


def ended(transfer: NixlTransfer, read: int) -> ReadState:
    deadline = time.monotonic() + WAIT_SECONDS
    while (state := transfer.poll(read)) == ReadState.RUNNING:
        assert time.monotonic() < deadline, "a read hangs"
        time.sleep(0.001)
    return state


def last_message(transfer: NixlTransfer) -> tuple[str, LeaseMessage]:
    """Wait for messages; the last of them."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (received := transfer.notifications()):
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.001)
    return received[-1]
