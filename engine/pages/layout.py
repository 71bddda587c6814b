"""The layout of a page, which is one record of bytes:

    record = [ target part: slab | slab | ... ][ drafter part: slab | ... ]

and a slab is `page_tokens` rows of one layer's entry. Layers that keep the whole context share the group
"full"; layers with a sliding window share a group per window, whose pages are freed behind the window.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

import torch

ALIGNMENT = 256
Part = Literal["target", "drafter"]
SlabKey = tuple[Part, int, str]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cached tensor of one layer, with its `shape` per token. If `window` is None, the whole context is kept."""

    layer: int
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    window: int | None = None
    part: Part = "target"

    @property
    def key(self) -> SlabKey:
        return self.part, self.layer, self.name

    @property
    def row_elements(self) -> int:
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.row_elements * self.dtype.itemsize

    @property
    def group(self) -> str:
        return "full" if self.window is None else f"window{self.window}"

    def __str__(self) -> str:
        return f"{self.part}.{self.layer}.{self.name}{list(self.shape)}:{self.dtype}"


@dataclass(frozen=True)
class PageGroup:
    """The entries that share one page table. `offsets` are in bytes from the start of a record."""

    name: str
    window: int | None
    page_tokens: int
    entries: tuple[Entry, ...]
    offsets: dict[SlabKey, int] = field(hash=False)
    target_bytes: int
    page_bytes: int

    @classmethod
    def of(cls, entries: list[Entry], page_tokens: int) -> "PageGroup":
        """Lay out the target's slabs, then the drafter's; each starts at a multiple of ALIGNMENT bytes."""
        ordered = sorted(entries, key=lambda e: (e.part != "target", e.layer, e.name))
        offsets: dict[SlabKey, int] = {}
        end = target_bytes = 0
        for entry in ordered:
            assert entry.key not in offsets, f"{entry} twice"
            offsets[entry.key] = end
            end = round_up(end + page_tokens * entry.row_bytes, ALIGNMENT)
            if entry.part == "target":
                target_bytes = end
        first = ordered[0]
        return cls(first.group, first.window, page_tokens, tuple(ordered), offsets, target_bytes, end)

    def num_pages(self, num_tokens: int) -> int:
        """Return the logical pages of a context of `num_tokens`."""
        return -(-num_tokens // self.page_tokens)

    def peak_pages(self, num_tokens: int, step_tokens: int) -> int:
        """Return the most pages that a request of `num_tokens` holds at once, in steps of `step_tokens`."""
        pages = self.num_pages(num_tokens)
        if self.window is None:
            return pages
        return min(pages, self.num_pages(self.window + step_tokens) + 2)

    def first_live_page(self, committed: int) -> int:
        """Return the first logical page that a token at or after position `committed` can still see."""
        if self.window is None:
            return 0
        return max(0, committed - self.window) // self.page_tokens


@dataclass(frozen=True)
class CacheLayout:
    """All page groups of a model (and its drafter). Allocation, views, descriptors and fingerprints follow from it."""

    page_tokens: int
    groups: dict[str, PageGroup] = field(hash=False)

    @classmethod
    def of(cls, entries: Iterable[Entry], page_tokens: int) -> "CacheLayout":
        by_group: dict[str, list[Entry]] = {}
        for entry in entries:
            by_group.setdefault(entry.group, []).append(entry)
        return cls(page_tokens, {name: PageGroup.of(by_group[name], page_tokens) for name in sorted(by_group)})

    @cached_property
    def group_of(self) -> dict[SlabKey, PageGroup]:
        return {entry.key: group for group in self.groups.values() for entry in group.entries}

    def fingerprint(self, part: Part) -> str:
        """Return a digest of everything that decides the position of a byte of `part`."""
        lines = [f"page_tokens={self.page_tokens} alignment={ALIGNMENT}"]
        for name, group in self.groups.items():
            lines += [f"{name} {group.offsets[e.key]} {e}" for e in group.entries if e.part == part]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
