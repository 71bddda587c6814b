"""How long a request took to get here: from its handoff to its last token."""

from dataclasses import dataclass

from decode.handoff_reads import Incoming
from engine.types import DecodeTimings

NO_TIME = DecodeTimings(wait_seconds=0.0, transfer_seconds=0.0, decode_seconds=0.0, moved_bytes=0, moved_pages=0)


@dataclass
class RequestTimings:
    """When the stations of a running request were passed, on the engine's clock; and its steps that took longer than
    they would on the device that is emulated."""

    incoming: Incoming
    admitted: float
    overruns: int = 0

    def timings(self, now: float, emulated: str) -> DecodeTimings:
        incoming = self.incoming
        return DecodeTimings(
            wait_seconds=incoming.read_started - incoming.arrived,
            transfer_seconds=incoming.read_ended - incoming.read_started,
            decode_seconds=now - self.admitted,
            moved_bytes=incoming.moved_bytes,
            moved_pages=incoming.moved_pages,
            emulated=emulated,
            overruns=self.overruns,
        )
