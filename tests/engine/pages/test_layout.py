from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.pages import CacheLayout, Entry
from engine.pages.layout import ALIGNMENT

DTYPES = [torch.float32, torch.bfloat16, torch.uint8]
entries = st.builds(
    Entry,
    layer=st.integers(0, 5),
    name=st.sampled_from(["k", "v", "latent"]),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple),
    dtype=st.sampled_from(DTYPES),
    window=st.sampled_from([None, None, 8, 70]),
    part=st.sampled_from(["target", "target", "drafter"]),
)
many_entries = st.lists(entries, min_size=1, max_size=12, unique_by=lambda e: e.key)
page_sizes = st.sampled_from([16, 64, 100])

BASE = [
    Entry(layer=0, name="k", shape=(2, 8), dtype=torch.float32),
    Entry(layer=0, name="v", shape=(2, 8), dtype=torch.float32),
    Entry(layer=1, name="k", shape=(2, 8), dtype=torch.float32, window=70),
]
DRAFTER = [
    Entry(layer=0, name="k", shape=(3,), dtype=torch.float32, part="drafter"),
    Entry(layer=1, name="k", shape=(3,), dtype=torch.float32, part="drafter", window=70),
    Entry(layer=2, name="k", shape=(3,), dtype=torch.float32, part="drafter", window=8),
]


@given(many_entries, page_sizes)
def test_slabs_are_aligned_inside_the_record_and_apart(some: list[Entry], page_tokens: int) -> None:
    layout = CacheLayout.of(some, page_tokens)

    assert sum(len(group.entries) for group in layout.groups.values()) == len(some)
    for group in layout.groups.values():
        end = 0
        for entry in sorted(group.entries, key=lambda e: group.offsets[e.key]):
            start = group.offsets[entry.key]
            assert start % ALIGNMENT == 0
            assert start >= end, f"{entry} overlaps the slab before it"
            end = start + page_tokens * entry.row_bytes
        assert end <= group.page_bytes
        assert group.page_bytes % ALIGNMENT == 0


@given(many_entries, page_sizes)
def test_the_target_part_of_a_record_comes_first(some: list[Entry], page_tokens: int) -> None:
    for group in CacheLayout.of(some, page_tokens).groups.values():
        for entry in group.entries:
            start = group.offsets[entry.key]
            in_target = start + page_tokens * entry.row_bytes <= group.target_bytes
            assert in_target if entry.part == "target" else start >= group.target_bytes


@given(many_entries, page_sizes)
def test_a_drafter_does_not_change_the_target_fingerprint(some: list[Entry], page_tokens: int) -> None:
    targets = [entry for entry in some if entry.part == "target"]

    alone, together = CacheLayout.of(targets, page_tokens), CacheLayout.of(some, page_tokens)

    assert alone.fingerprint("target") == together.fingerprint("target")


def test_a_drafter_has_a_fingerprint_of_its_own() -> None:
    some, other = CacheLayout.of(BASE + DRAFTER, 64), CacheLayout.of(BASE + DRAFTER[:2], 64)

    assert some.fingerprint("drafter") != other.fingerprint("drafter")


def test_the_order_in_which_layers_are_found_does_not_matter() -> None:
    assert CacheLayout.of(BASE, 64).fingerprint("target") == CacheLayout.of(BASE[::-1], 64).fingerprint("target")


@pytest.mark.parametrize(
    "change",
    [{"shape": (2, 9)}, {"shape": (16,)}, {"dtype": torch.int32}, {"layer": 7}, {"name": "z"}, {"window": 70}],
    ids=str,
)
def test_the_fingerprint_changes_with_any_part_of_any_entry(change: dict[str, object]) -> None:
    changed = [replace(BASE[0], **change), *BASE[1:]]

    assert CacheLayout.of(changed, 64).fingerprint("target") != CacheLayout.of(BASE, 64).fingerprint("target")


def test_the_fingerprint_changes_with_the_page_size_and_the_window() -> None:
    base = CacheLayout.of(BASE, 64).fingerprint("target")

    assert CacheLayout.of(BASE, 128).fingerprint("target") != base
    assert CacheLayout.of([*BASE[:2], replace(BASE[2], window=71)], 64).fingerprint("target") != base


def test_one_slab_alone_has_a_fingerprint_of_its_page_size() -> None:
    """Its offset is 0 in pages of any size."""
    assert CacheLayout.of(BASE[:1], 64).fingerprint("target") != CacheLayout.of(BASE[:1], 128).fingerprint("target")


def test_the_same_slab_of_another_layer_has_another_fingerprint() -> None:
    alone = CacheLayout.of(BASE[:1], 64)

    assert alone.fingerprint("target") != CacheLayout.of([replace(BASE[0], layer=1)], 64).fingerprint("target")


def test_one_entry_twice_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="twice"):
        CacheLayout.of([BASE[0], BASE[0]], 64)
