"""Reading pages of other replicas, and the messages about their leases.

`NixlTransfer` implements `Transfer` between processes and hosts; `LocalTransfer` (local_transfer.py) inside one
process, by copying.

Decode pulls: it posts one READ for all pages of a handoff, with one descriptor per page; pages that are adjacent on
both sides share one. Messages are NIXL notifications, sent to the very agent that holds the lease.
"""

import base64
import enum
import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from engine.errors import ConfigError
from engine.pages import PageStore
from engine.types import AgentEntry, Region

Block = tuple[int, int, int]
"""A block of memory as NIXL has it: address, bytes, device."""


class ReadState(enum.Enum):
    RUNNING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class LeaseCommand(enum.StrEnum):
    RENEW = "renew"
    RELEASE = "release"


@dataclass(frozen=True, kw_only=True)
class LeaseMessage:
    """A command about the lease `nonce` (`held` None), or the answer to it: whether the lease was still held.

    A command carries its sender's agent metadata, so that an agent which is not yet connected can answer.
    """

    command: LeaseCommand
    nonce: str
    held: bool | None = None
    metadata: bytes = b""

    def encode(self) -> bytes:
        metadata = base64.b64encode(self.metadata).decode()
        return json.dumps([self.command, self.nonce, self.held, metadata]).encode()

    @classmethod
    def decode(cls, data: bytes) -> "LeaseMessage":
        """Decode a notification. Raises ValueError if it is not a LeaseMessage."""
        try:
            command, nonce, held, metadata = json.loads(data)
            if not isinstance(nonce, str) or not isinstance(held, bool | None):
                raise ValueError(f"nonce {nonce!r}, held {held!r}")
            return cls(
                command=LeaseCommand(command),
                nonce=nonce,
                held=held,
                metadata=base64.b64decode(metadata, validate=True),
            )
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not [command, nonce, held, metadata]: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PageRead:
    """A read of the first `num_bytes` of each remote page of a group into the local page at the same index."""

    group: str
    remote_pages: tuple[int, ...]
    local_pages: tuple[int, ...]
    num_bytes: int

    def runs(self, local_page_bytes: int, remote_page_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield (remote page, local page, bytes) of each descriptor. Whole records adjacent on both sides share one."""
        whole = self.num_bytes == local_page_bytes == remote_page_bytes
        start = 0
        for i in range(1, len(self.remote_pages) + 1):
            adjacent = (
                whole
                and i < len(self.remote_pages)
                and self.remote_pages[i] == self.remote_pages[i - 1] + 1
                and self.local_pages[i] == self.local_pages[i - 1] + 1
            )
            if not adjacent:
                yield self.remote_pages[start], self.local_pages[start], (i - start) * self.num_bytes
                start = i

    @property
    def total_bytes(self) -> int:
        return len(self.remote_pages) * self.num_bytes


class Transfer(Protocol):
    @property
    def entry(self) -> AgentEntry:
        """The entry by which peers reach this agent."""
        ...

    def connect(self, peer: AgentEntry) -> bool:
        """Connect to an agent unless already connected. Return False if it cannot be reached."""
        ...

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        """Start reading pages of `peer`; return a number to poll. A read that cannot start polls as FAILED."""
        ...

    def poll(self, read: int) -> ReadState:
        """Return a read's state. DONE and FAILED are final: no byte arrives afterwards, and the number is forgotten."""
        ...

    def notify(self, peer: str, message: LeaseMessage) -> bool:
        """Send a message to a connected agent, or one that has sent a command. Return False if it is unreachable."""
        ...

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        """Return (sender, message) for each message received since the last call."""
        ...

    def drop(self, peer: str) -> None:
        """Drop the connection to a peer that is gone."""
        ...

    def close(self) -> None: ...


def new_agent_name(replica: str) -> str:
    """Return an agent name that is new for every start of `replica`."""
    return f"{replica}-{uuid.uuid4().hex[:12]}"


class NixlTransfer:
    """A transfer by NIXL over UCX. The whole page store is registered once, when the replica starts."""

    def __init__(self, name: str, store: PageStore, num_threads: int = 0, progress_thread: bool = False) -> None:
        try:
            from nixl._api import nixl_agent, nixl_agent_config
            from nixl._bindings import (
                nixlBackendError,
                nixlInvalidParamError,
                nixlMismatchError,
                nixlNotFoundError,
                nixlRemoteDisconnectError,
            )
        except ImportError as error:
            hint = "install it, or serve in one process with `generate --local`"
            raise ConfigError(f"transfer: nixl cannot be imported ({error}); {hint}") from error
        # What NIXL raises if the peer is at fault; any other exception is a bug here.
        self._faults = (nixlBackendError, nixlNotFoundError, nixlRemoteDisconnectError)
        self._bad_metadata = (*self._faults, nixlInvalidParamError, nixlMismatchError)
        options = nixl_agent_config(enable_prog_thread=progress_thread, backends=["UCX"], num_threads=num_threads)
        self._agent = nixl_agent(name, options)
        self._store = store  # kept alive, because peers read it as long as the agent exists
        self._memory = "VRAM" if store.device.type == "cuda" else "DRAM"
        self._device = store.device.index or 0
        regions = {
            group: Region(
                address=records.data_ptr(),
                num_pages=records.shape[0],
                page_bytes=records.shape[1],
                device=self._device,
                memory=self._memory,
            )
            for group, records in store.records.items()
        }
        blocks = [(r.address, r.num_pages * r.page_bytes, r.device, "") for r in regions.values()]
        self._registered = self._agent.register_memory(blocks, self._memory)
        self._entry = AgentEntry(name=name, metadata=self._agent.get_agent_metadata(), regions=regions)
        self._peers: set[str] = set()
        self._handles: dict[int, object] = {}
        self._numbers = itertools.count()

    @property
    def entry(self) -> AgentEntry:
        return self._entry

    def connect(self, peer: AgentEntry) -> bool:
        return self._connect(peer.name, peer.metadata)

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        number = next(self._numbers)
        self._handles[number] = None
        if not self.connect(peer):
            return number
        try:
            local, remote = self._descriptors(peer, reads)
            memory = next(iter(peer.regions.values())).memory
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(local, self._memory),
                self._agent.get_xfer_descs(remote, memory),
                peer.name,
            )
            self._handles[number] = handle
            self._agent.transfer(handle)
        except self._faults:
            self._release(number)
        return number

    def poll(self, read: int) -> ReadState:
        handle = self._handles.get(read)
        if handle is None:
            self._handles.pop(read, None)
            return ReadState.FAILED
        try:
            state = self._agent.check_xfer_state(handle)
        except self._faults:
            state = "ERR"
        if state == "PROC":
            return ReadState.RUNNING
        self._release(read)
        self._handles.pop(read)
        return ReadState.DONE if state == "DONE" else ReadState.FAILED

    def notify(self, peer: str, message: LeaseMessage) -> bool:
        if peer not in self._peers:
            return False
        try:
            self._agent.send_notif(peer, message.encode())
        except self._faults:
            self.drop(peer)
            return False
        return True

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        received = []
        for peer, messages in self._agent.get_new_notifs().items():
            for data in messages:
                try:
                    message = LeaseMessage.decode(data)
                except ValueError:
                    continue  # anyone who reaches the port can send anything
                if message.metadata:
                    self._connect(peer, message.metadata)
                received.append((peer, message))
        return received

    def drop(self, peer: str) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            try:
                self._agent.remove_remote_agent(peer)
            except self._faults:
                return  # the backend has dropped it already

    def close(self) -> None:
        for number in list(self._handles):
            self._release(number)
        for peer in list(self._peers):
            self.drop(peer)
        self._agent.deregister_memory(self._registered)

    def _connect(self, name: str, metadata: bytes) -> bool:
        if name not in self._peers:
            try:
                self._agent.add_remote_agent(metadata)
            except self._bad_metadata:
                return False
            self._peers.add(name)
        return True

    def _descriptors(self, peer: AgentEntry, reads: list[PageRead]) -> tuple[list[Block], list[Block]]:
        local, remote = [], []
        for read in reads:
            ours, theirs = self._entry.regions[read.group], peer.regions[read.group]
            for remote_page, local_page, num_bytes in read.runs(ours.page_bytes, theirs.page_bytes):
                local.append((ours.address + local_page * ours.page_bytes, num_bytes, ours.device))
                remote.append((theirs.address + remote_page * theirs.page_bytes, num_bytes, theirs.device))
        return local, remote

    def _release(self, number: int) -> None:
        handle, self._handles[number] = self._handles[number], None
        if handle is not None:
            self._agent.release_xfer_handle(handle)
