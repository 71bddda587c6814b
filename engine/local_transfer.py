"""The transfer inside one process: copies between page stores instead of NIXL reads."""

import itertools

import torch

from engine.pages import PageStore
from engine.transfer import LeaseMessage, PageRead, ReadState
from engine.types import AgentEntry, Region


class LocalWire:
    """Connects the LocalTransfers of one process. A test can stall all reads, or disconnect an agent."""

    def __init__(self) -> None:
        self.agents: dict[str, LocalTransfer] = {}
        self.stalled = False

    def cut(self, name: str) -> None:
        """Disconnect an agent, as when its process dies."""
        del self.agents[name]


class LocalTransfer:
    """A `Transfer` whose reads are copies, made at the first poll while the wire is not stalled."""

    def __init__(self, name: str, store: PageStore, wire: LocalWire) -> None:
        self._store = store
        self._wire = wire
        regions = {
            group: Region(address=0, num_pages=records.shape[0], page_bytes=records.shape[1])
            for group, records in store.records.items()
        }
        self._entry = AgentEntry(name=name, metadata=name.encode(), regions=regions)
        self._reads: dict[int, tuple[str, list[PageRead]]] = {}
        self._inbox: list[tuple[str, LeaseMessage]] = []
        self._peers: set[str] = set()
        self._numbers = itertools.count()
        wire.agents[name] = self

    @property
    def entry(self) -> AgentEntry:
        return self._entry

    def connect(self, peer: AgentEntry) -> bool:
        if peer.name not in self._wire.agents:
            return False
        self._peers.add(peer.name)
        return True

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        number = next(self._numbers)
        self._reads[number] = (peer.name, reads)
        return number

    def poll(self, read: int) -> ReadState:
        if read not in self._reads:
            return ReadState.FAILED
        if self._wire.stalled:
            return ReadState.RUNNING
        name, reads = self._reads.pop(read)
        source = self._wire.agents.get(name)
        if source is None:
            return ReadState.FAILED
        for part in reads:
            local, remote = self._store.records[part.group], source._store.records[part.group]
            device = local.device
            rows = remote[torch.tensor(part.remote_pages, device=remote.device), : part.num_bytes]
            local[torch.tensor(part.local_pages, device=device), : part.num_bytes] = rows.to(device)
        return ReadState.DONE

    def notify(self, peer: str, message: LeaseMessage) -> bool:
        receiver = self._wire.agents.get(peer)
        if receiver is None or peer not in self._peers:
            return False
        if message.metadata:
            receiver._peers.add(self._entry.name)
        receiver._inbox.append((self._entry.name, LeaseMessage.decode(message.encode())))
        return True

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        received, self._inbox = self._inbox, []
        return received

    def drop(self, peer: str) -> None:
        self._peers.discard(peer)

    def close(self) -> None:
        self._wire.agents.pop(self._entry.name, None)
