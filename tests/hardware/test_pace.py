"""The pace of an emulated device and of its link, on a clock that the test moves."""

import pytest

from engine.clock import ManualClock
from engine.errors import ConfigError
from engine.transfer import PageRead, ReadState
from hardware.link import Link
from hardware.pace import ModelledPace, Scaled
from hardware.paced import PacedTransfer


class Times:
    """Two seconds to draft, three to verify."""

    def draft_seconds(self, requests: int, context: int) -> float:
        return 2.0

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return 3.0


class Instant:
    """A transfer whose reads are done at once, or fail."""

    def __init__(self, ends: ReadState = ReadState.DONE) -> None:
        self._ends = ends
        self._reads = 0

    def read(self, peer: object, reads: list[PageRead]) -> int:
        self._reads += 1
        return self._reads

    def poll(self, read: int) -> ReadState:
        return self._ends


def pages(count: int) -> list[PageRead]:
    numbers = tuple(range(count))
    return [PageRead(group="full", remote_pages=numbers, local_pages=numbers, num_bytes=100)]


def paced(ends: ReadState = ReadState.DONE) -> tuple[PacedTransfer, ManualClock]:
    clock = ManualClock()
    return PacedTransfer(Instant(ends), Link(1000.0, 0.5), clock), clock  # type: ignore[arg-type]


def test_a_fast_step_waits_for_the_device() -> None:
    clock = ManualClock()
    pace = ModelledPace(Times(), clock, clock.advance, "lpx")
    clock.advance(0.5)
    pace.drafted(0.0, 1, 1)
    assert clock.now() == 2.0
    clock.advance(1.0)

    assert not pace.verified(2.0, 1, 1, 1)
    assert clock.now() == 5.0


@pytest.mark.parametrize(("drafting", "verifying"), [(2.5, 1.0), (1.0, 3.5)])
def test_a_slow_part_is_an_overrun_of_that_step_alone(drafting: float, verifying: float) -> None:
    clock = ManualClock()
    pace = ModelledPace(Times(), clock, clock.advance)
    clock.advance(drafting)
    pace.drafted(0.0, 1, 1)
    began = clock.now()
    clock.advance(verifying)

    assert pace.verified(began, 1, 1, 1)
    assert not pace.verified(clock.now(), 1, 1, 1)


def test_scaled_times() -> None:
    assert Scaled(Times(), 10.0).verify_seconds(1, 1, 1) == 30.0
    assert Scaled(Times(), 10.0).draft_seconds(1, 1) == 20.0


def test_a_read_is_done_when_the_link_would_be() -> None:
    """400 bytes at 1,000 bytes a second, and half a second of latency."""
    transfer, clock = paced()
    read = transfer.read(None, pages(4))  # type: ignore[arg-type]

    assert transfer.poll(read) == ReadState.RUNNING
    clock.advance(0.89)
    assert transfer.poll(read) == ReadState.RUNNING
    clock.advance(0.02)
    assert transfer.poll(read) == ReadState.DONE


def test_reads_share_the_link() -> None:
    transfer, clock = paced()
    first, second = (transfer.read(None, pages(4)) for _ in range(2))  # type: ignore[arg-type]
    clock.advance(0.91)

    assert transfer.poll(first) == ReadState.DONE
    assert transfer.poll(second) == ReadState.RUNNING
    clock.advance(0.4)
    assert transfer.poll(second) == ReadState.DONE


def test_a_read_that_fails_has_failed_at_once() -> None:
    transfer, _ = paced(ReadState.FAILED)

    assert transfer.poll(transfer.read(None, pages(4))) == ReadState.FAILED  # type: ignore[arg-type]


@pytest.mark.parametrize(("bandwidth", "latency"), [(0.0, 0.0), (1.0, -1.0)])
def test_a_link_that_is_none_is_refused(bandwidth: float, latency: float) -> None:
    with pytest.raises(ConfigError, match="is none"):
        Link(bandwidth, latency)
