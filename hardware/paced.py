"""A transfer whose reads take as long as they would over another link."""

from engine.clock import Clock
from engine.transfer import LeaseMessage, PageRead, ReadState, Transfer
from engine.types import AgentEntry
from hardware.link import Link


class PacedTransfer:
    """A `Transfer` that says of a read that it is done when it is, and the modelled link would have been, too."""

    def __init__(self, transfer: Transfer, link: Link, clock: Clock) -> None:
        self._transfer = transfer
        self._link = link
        self._clock = clock
        self._arrives: dict[int, float] = {}
        self._done: set[int] = set()

    @property
    def entry(self) -> AgentEntry:
        return self._transfer.entry

    def connect(self, peer: AgentEntry) -> bool:
        return self._transfer.connect(peer)

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        number = self._transfer.read(peer, reads)
        self._arrives[number] = self._link.arrives(self._clock.now(), sum(read.total_bytes for read in reads))
        return number

    def poll(self, read: int) -> ReadState:
        if read not in self._done:
            state = self._transfer.poll(read)
            if state == ReadState.RUNNING:
                return state
            if state == ReadState.FAILED:
                self._arrives.pop(read, None)
                return state
            self._done.add(read)
        if self._clock.now() < self._arrives[read]:
            return ReadState.RUNNING
        self._done.remove(read)
        del self._arrives[read]
        return ReadState.DONE

    def notify(self, peer: str, message: LeaseMessage) -> bool:
        return self._transfer.notify(peer, message)

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        return self._transfer.notifications()

    def drop(self, peer: str) -> None:
        self._transfer.drop(peer)

    def close(self) -> None:
        self._transfer.close()
