"""The bytes of all pages, and each layer's strided view of them.

T = tokens, R = rows (requests), P = pages of a row, K = P * page_tokens keys of a row
"""

import torch
from torch import Tensor

from engine.device import mapped
from engine.pages.layout import CacheLayout, Entry, SlabKey


class Slab:
    """One entry of one layer in every page: logically [num_pages, page_tokens, *shape], strided by page."""

    def __init__(self, records: Tensor, entry: Entry, offset: int, page_tokens: int) -> None:
        itemsize = entry.dtype.itemsize
        typed = records.view(entry.dtype)
        start, length = offset // itemsize, page_tokens * entry.row_elements
        self.pages_2d = typed[:, start : start + length]
        self.rows = self.pages_2d.unflatten(1, (page_tokens, *entry.shape))
        self.address, self.page_stride, self.page_tokens = typed[:, start:].data_ptr(), typed.stride(0), page_tokens
        self._shape = entry.shape

    @property
    def num_pages(self) -> int:
        """The number of pages, the scratch page included."""
        return self.pages_2d.shape[0]

    def write(self, page_T: Tensor, offset_T: Tensor, values: Tensor) -> None:
        """Store `values` [T, *shape] at (page, offset) of each token. Only scratch slots may repeat."""
        self.rows[page_T, offset_T] = values

    def gather(self, pages_RP: Tensor) -> Tensor:
        """Return a copy of whole pages: [R, K, *shape]. (`rows[pages]` would be five times slower on a CPU.)"""
        num_rows, _ = pages_RP.shape
        return self.pages_2d.index_select(0, pages_RP.flatten()).view(num_rows, -1, *self._shape)


def _zeros(num_pages: int, page_bytes: int, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(num_pages, page_bytes, dtype=torch.uint8, device=device)
    return mapped(num_pages * page_bytes).view(num_pages, page_bytes)


class PageStore:
    """`uint8[num_pages + 1, page_bytes]` for each group, zeroed: masked keys must be finite, or 0 * NaN spreads."""

    def __init__(self, layout: CacheLayout, num_pages: dict[str, int], device: torch.device) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.device = device
        self.records = {
            name: _zeros(num_pages[name] + 1, group.page_bytes, device) for name, group in layout.groups.items()
        }
        self._slabs = {
            entry.key: Slab(self.records[name], entry, group.offsets[entry.key], layout.page_tokens)
            for name, group in layout.groups.items()
            for entry in group.entries
        }

    def slab(self, key: SlabKey) -> Slab:
        return self._slabs[key]

    @property
    def num_bytes(self) -> int:
        return sum(records.numel() for records in self.records.values())
