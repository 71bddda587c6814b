"""Pages and words between two processes over real NIXL, on the loopback."""

import sys
from collections.abc import Iterator

import pytest
import torch

from engine.errors import ConfigError
from engine.pages import PageStore
from engine.transfer import LeaseCommand, LeaseMessage, NixlTransfer, PageRead, ReadState, new_agent_name
from tests.engine.peer import DRAFTER_ENTRY, ENTRIES, Peer, ended, finished, last_message, make_store

pytest.importorskip("nixl")


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """A replica with a drafter: its records of one group are longer than ours."""
    with Peer(new_agent_name("peer"), [*ENTRIES, DRAFTER_ENTRY]) as peer:
        yield peer


@pytest.fixture
def store() -> PageStore:
    return make_store(ENTRIES, seed=2)


@pytest.fixture
def transfer(store: PageStore) -> Iterator[NixlTransfer]:
    transfer = NixlTransfer(new_agent_name("me"), store)
    yield transfer
    transfer.close()


@pytest.mark.parametrize("group", ["full", "window20"])
@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_read_copies_the_written_bytes_and_changes_no_others(
    peer: Peer, transfer: NixlTransfer, store: PageStore, group: str, part: float
) -> None:
    ours, theirs = store.records[group], peer.records[group]
    expected, num_bytes = ours.clone(), int(ours.shape[1] * part)
    remote, local = (3, 4, 5, 9, 1), (7, 8, 9, 2, 12)
    for theirs_id, ours_id in zip(remote, local, strict=True):
        expected[ours_id, :num_bytes] = theirs[theirs_id, :num_bytes]

    state = finished(transfer, peer, PageRead(group=group, remote_pages=remote, local_pages=local, num_bytes=num_bytes))

    assert state == ReadState.DONE
    assert torch.equal(ours, expected)


def test_one_read_fills_every_group(peer: Peer, transfer: NixlTransfer, store: PageStore) -> None:
    reads = [
        PageRead(group=group, remote_pages=(2, 3), local_pages=(5, 6), num_bytes=records.shape[1])
        for group, records in store.records.items()
    ]

    assert finished(transfer, peer, *reads) == ReadState.DONE

    for group, records in store.records.items():
        assert torch.equal(records[5:7], peer.records[group][2:4, : records.shape[1]])


def test_a_finished_read_is_released(peer: Peer, transfer: NixlTransfer) -> None:
    number = transfer.read(peer.entry, [PageRead(group="full", remote_pages=(1,), local_pages=(1,), num_bytes=256)])
    assert ended(transfer, number) == ReadState.DONE

    assert not transfer._handles
    assert transfer.poll(number) == ReadState.FAILED


def test_a_peer_that_was_dropped_by_mistake_is_connected_again(peer: Peer, transfer: NixlTransfer) -> None:
    one_page = PageRead(group="full", remote_pages=(1,), local_pages=(2,), num_bytes=256)
    assert finished(transfer, peer, one_page) == ReadState.DONE

    transfer.drop(peer.entry.name)

    assert finished(transfer, peer, one_page) == ReadState.DONE


def test_a_command_is_answered_by_an_agent_that_was_not_connected(peer: Peer, transfer: NixlTransfer) -> None:
    transfer.connect(peer.entry)

    assert transfer.notify(
        peer.entry.name, LeaseMessage(command=LeaseCommand.RENEW, nonce="n-1", metadata=transfer.entry.metadata)
    )

    assert last_message(transfer) == (peer.entry.name, LeaseMessage(command=LeaseCommand.RENEW, nonce="n-1", held=True))


def test_an_unconnected_agent_cannot_be_notified(transfer: NixlTransfer) -> None:
    assert not transfer.notify("unknown", LeaseMessage(command=LeaseCommand.RELEASE, nonce="n"))


@pytest.mark.parametrize(
    "garbage",
    [b"\xff", b"[]", LeaseMessage(command=LeaseCommand.RENEW, nonce="x", metadata=b"no agent's").encode()],
    ids=["bytes", "json", "metadata"],
)
def test_a_garbage_notification_is_survived(peer: Peer, transfer: NixlTransfer, garbage: bytes) -> None:
    """Anyone who reaches the port may send anything; it must not take the engine down."""
    transfer.connect(peer.entry)

    transfer._agent.send_notif(peer.entry.name, garbage)
    question = LeaseMessage(command=LeaseCommand.RELEASE, nonce="n-2", metadata=transfer.entry.metadata)
    assert transfer.notify(peer.entry.name, question)

    while last_message(transfer)[1].nonce != "n-2":
        pass
    assert peer.alive


def test_garbage_metadata_is_no_agent(transfer: NixlTransfer) -> None:
    for metadata in (b"", b"garbage", transfer.entry.metadata):
        assert not transfer._connect("stranger", metadata)


def test_a_dead_peer_fails_soon_and_its_successor_can_be_read(transfer: NixlTransfer) -> None:
    one_page = PageRead(group="full", remote_pages=(1,), local_pages=(2,), num_bytes=256)
    with Peer(new_agent_name("peer")) as peer:
        assert finished(transfer, peer, one_page) == ReadState.DONE
        peer.kill()

        assert finished(transfer, peer, one_page) == ReadState.FAILED
        assert not transfer.notify(peer.entry.name, LeaseMessage(command=LeaseCommand.RENEW, nonce="n"))
        transfer.drop(peer.entry.name)
        transfer.drop(peer.entry.name)
        assert finished(transfer, peer, one_page) == ReadState.FAILED

    with Peer(new_agent_name("peer")) as successor:
        assert finished(transfer, successor, one_page) == ReadState.DONE


def test_a_read_under_way_ends_when_the_peer_dies() -> None:
    """The peer is frozen first, so that a read which needs its help cannot be over before it dies."""
    num_pages = 8192
    transfer = NixlTransfer(new_agent_name("me"), make_store(ENTRIES, seed=2, num_pages=num_pages))
    pages = tuple(range(1, num_pages, 2))
    with Peer(new_agent_name("peer"), num_pages=num_pages) as peer:
        assert transfer.connect(peer.entry)
        peer.stop_answering()
        number = transfer.read(
            peer.entry, [PageRead(group="full", remote_pages=pages, local_pages=pages, num_bytes=2560)]
        )
        peer.kill()

        assert ended(transfer, number) in (ReadState.DONE, ReadState.FAILED)
    transfer.close()


def test_an_engine_without_nixl_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)

    with pytest.raises(ConfigError, match="install it, or serve in one process"):
        NixlTransfer("me", make_store(ENTRIES, seed=2))
