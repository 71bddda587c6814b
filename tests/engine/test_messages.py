import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.transfer import LeaseCommand, LeaseMessage, PageRead

PAGE_BYTES = 1024
page_ids = st.lists(st.integers(1, 12), min_size=1, max_size=12, unique=True)


@given(st.sampled_from(LeaseCommand), st.text(), st.sampled_from([None, True, False]), st.binary())
def test_a_message_survives_the_wire(verb: LeaseCommand, nonce: str, held: bool | None, metadata: bytes) -> None:
    message = LeaseMessage(command=verb, nonce=nonce, held=held, metadata=metadata)

    assert LeaseMessage.decode(message.encode()) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"release",
        b"5",
        b"null",
        b"{}",
        b"[]",
        b'["release", "n", true]',
        b'["release", "n", true, "", ""]',
        b'["destroy", "n", null, ""]',
        b'[["release"], "n", null, ""]',
        b'["release", 5, null, ""]',
        b'["release", "n", "yes", ""]',
        b'["release", "n", null, 5]',
        b'["release", "n", null, "*"]',
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_invalid_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each in words of its own
        LeaseMessage.decode(data)


@given(st.one_of(st.binary(), st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())))
def test_any_bytes_raise_at_most_a_value_error(data: bytes) -> None:
    try:
        LeaseMessage.decode(data)
    except ValueError:
        return


def fewest(pairs: list[tuple[int, int]]) -> int:
    """Descriptors that are needed: one more wherever a pair does not follow the one before it on both sides."""
    followed = [(a + 1, b + 1) == after for (a, b), after in pairwise(pairs)]
    return len(pairs) - sum(followed)


@given(page_ids, page_ids)
def test_whole_pages_need_the_fewest_descriptors(remote: list[int], local: list[int]) -> None:
    pairs = [*zip(remote, local, strict=False)]
    remote, local = [a for a, _ in pairs], [b for _, b in pairs]
    read = PageRead(group="full", remote_pages=tuple(remote), local_pages=tuple(local), num_bytes=PAGE_BYTES)

    runs = [*read.runs(PAGE_BYTES, PAGE_BYTES)]

    assert len(runs) == fewest(pairs)
    assert [(a + i, b + i) for a, b, size in runs for i in range(size // PAGE_BYTES)] == pairs
    assert sum(size for _, _, size in runs) == read.total_bytes


@pytest.mark.parametrize(("ours", "theirs"), [(1280, 1280), (1024, 1280), (1280, 1024)])
def test_parts_of_records_are_never_joined(ours: int, theirs: int) -> None:
    """A record that is longer on one side only (a drafter's part) has bytes between two target parts as well."""
    read = PageRead(group="full", remote_pages=(1, 2, 3), local_pages=(4, 5, 6), num_bytes=1024)

    assert [*read.runs(ours, theirs)] == [(1, 4, 1024), (2, 5, 1024), (3, 6, 1024)]


def test_nothing_to_read_needs_no_descriptor() -> None:
    assert not [*PageRead(group="full", remote_pages=(), local_pages=(), num_bytes=8).runs(8, 8)]
