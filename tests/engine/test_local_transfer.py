import pytest
import torch

from engine.local_transfer import LocalTransfer, LocalWire
from engine.transfer import LeaseCommand, LeaseMessage, PageRead, ReadState
from tests.engine.peer import ENTRIES, make_store

READ = PageRead(group="full", remote_pages=(3, 1), local_pages=(2, 5), num_bytes=100)


@pytest.fixture
def wire() -> LocalWire:
    return LocalWire()


@pytest.fixture
def ends(wire: LocalWire) -> tuple[LocalTransfer, LocalTransfer]:
    return LocalTransfer("a", make_store(ENTRIES, 1), wire), LocalTransfer("b", make_store(ENTRIES, 2), wire)


def test_a_read_copies_the_bytes_asked_for_and_no_others(ends: tuple[LocalTransfer, LocalTransfer]) -> None:
    reader, source = ends
    expected = reader._store.records["full"].clone()
    expected[[2, 5], :100] = source._store.records["full"][[3, 1], :100]

    assert reader.poll(reader.read(source.entry, [READ])) == ReadState.DONE

    assert torch.equal(reader._store.records["full"], expected)


def test_a_stalled_wire_moves_nothing_until_it_resumes(
    wire: LocalWire, ends: tuple[LocalTransfer, LocalTransfer]
) -> None:
    reader, source = ends
    wire.stalled = True
    before = reader._store.records["full"].clone()
    number = reader.read(source.entry, [READ])

    assert reader.poll(number) == ReadState.RUNNING
    assert torch.equal(reader._store.records["full"], before)
    wire.stalled = False
    assert reader.poll(number) == ReadState.DONE
    assert reader.poll(number) == ReadState.FAILED, "its number is forgotten"


def test_a_disconnected_agent_can_neither_be_read_nor_notified(
    wire: LocalWire, ends: tuple[LocalTransfer, LocalTransfer]
) -> None:
    reader, source = ends
    number = reader.read(source.entry, [READ])

    wire.cut("b")

    assert reader.poll(number) == ReadState.FAILED
    assert not reader.connect(source.entry)
    assert not reader.notify("b", LeaseMessage(command=LeaseCommand.RENEW, nonce="n"))


def test_messages_arrive_in_order_once(ends: tuple[LocalTransfer, LocalTransfer]) -> None:
    reader, source = ends
    assert reader.connect(source.entry)
    for nonce in ("1", "2"):
        assert reader.notify("b", LeaseMessage(command=LeaseCommand.RENEW, nonce=nonce))

    assert [(peer, message.nonce) for peer, message in source.notifications()] == [("a", "1"), ("a", "2")]
    assert source.notifications() == []


def test_only_a_connected_agent_or_one_that_sent_its_metadata_can_be_notified(
    ends: tuple[LocalTransfer, LocalTransfer],
) -> None:
    """Both ends behave as between processes, so a replica that does not connect fails here too."""
    reader, source = ends
    anonymous = LeaseMessage(command=LeaseCommand.RENEW, nonce="n")

    assert not reader.notify("b", anonymous)
    assert reader.connect(source.entry)
    assert reader.notify("b", anonymous)
    assert not source.notify("a", anonymous)
    assert reader.notify("b", LeaseMessage(command=LeaseCommand.RENEW, nonce="n", metadata=b"a"))
    assert source.notify("a", anonymous)
    reader.drop("b")
    assert not reader.notify("b", anonymous)
