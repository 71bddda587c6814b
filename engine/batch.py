"""A ragged batch: the tokens of several requests in one step of the model, on one flat token axis.

T = tokens of the step, R = rows of a segment, Q = queries of a row (padded), P = pages, K = P * page_tokens keys

Tokens are ordered by segment. Rows with few tokens share one padded segment; a row with many has its own, so a long
prefill chunk never pads a decode row. Attention loops over segments; prefill and decode use the same forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.device import to_device
from engine.pages import CacheLayout, PageGroup, Tables
from engine.pages.pool import SCRATCH_PAGE

SHORT_ROW_TOKENS = 16
Positions = Tensor | tuple[Tensor, ...]
"""The output of a rotary embedding of transformers: cos and sin, or one complex tensor (DeepSeek-V2)."""


@dataclass(frozen=True)
class Row:
    """One request's tokens in a step, at positions `start ..`; the last `num_logits` of them need logits.

    With `as_block`, every token sees all of the row, as in a DSpark block. Positions before `context_from` are masked.
    """

    tokens: Sequence[int]
    start: int
    tables: Tables
    num_logits: int
    as_block: bool = False
    context_from: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def last_seen(self, query: int) -> int:
        """Return the last position that token number `query` of the row sees."""
        return self.end - 1 if self.as_block else self.start + min(query, len(self.tokens) - 1)


@dataclass(frozen=True)
class Keys:
    """The keys that a segment's queries see in one page group: positions `first_RQ` to `last_RQ` (inclusive).

    They are in the pages `pages_RP`, which begin with the row's logical page `first_page_R`. T = tokens of the segment.
    """

    pages_RP: Tensor
    first_page_R: Tensor
    first_RQ: Tensor
    last_RQ: Tensor
    page_tokens: int
    token_index_T: Tensor  # where each token of the segment is in [R * Q]

    @cached_property
    def mask_R1QK(self) -> Tensor:
        """bool: which keys of the pages each query sees."""
        device = self.pages_RP.device
        offset_K = torch.arange(self.pages_RP.shape[1] * self.page_tokens, device=device)
        key_R1K = (self.first_page_R[:, None] * self.page_tokens + offset_K)[:, None, :]
        mask_RQK = (key_R1K >= self.first_RQ[..., None]) & (key_R1K <= self.last_RQ[..., None])
        return mask_RQK[:, None]

    @cached_property
    def row_T(self) -> Tensor:
        """int32: each token's row."""
        return (self.token_index_T // self.first_RQ.shape[1]).int()

    @cached_property
    def first_T(self) -> Tensor:
        """int32: the first position that each token sees."""
        return self.first_RQ.flatten()[self.token_index_T].int()

    @cached_property
    def last_T(self) -> Tensor:
        """int32: the last position that each token sees."""
        return self.last_RQ.flatten()[self.token_index_T].int()

    def check(self, num_pages: int) -> None:
        """Check on a CPU, for kernels that do not, that all keys are in `num_pages` pages. Raises AssertionError."""
        pages, size = self.pages_RP.numpy(), self.page_tokens
        begin = self.first_page_R.numpy()[:, None] * size
        assert pages.min() >= 0 and pages.max() < num_pages, "a page id is out of range"
        assert (self.first_RQ.numpy() - begin).min() >= 0, "a position is before its pages"
        assert (self.last_RQ.numpy() - begin).max() < pages.shape[1] * size, "a position is after its pages"


@dataclass(frozen=True)
class Segment:
    """Rows whose attention is computed together. `tokens` is their slice of the flat axis."""

    tokens: slice
    num_queries: int
    query_index_RQ: Tensor  # index into the segment's tokens; padding repeats a row's last one
    flat_index_T: Tensor  # the inverse: where token t of the segment is in [R * Q]
    keys: dict[str, Keys]

    @property
    def is_uniform(self) -> bool:
        """Return whether all rows have equally many tokens, as in decoding: then padding and unpadding are views."""
        return self.flat_index_T.shape[0] == self.query_index_RQ.numel()

    def pad(self, own_T: Tensor) -> Tensor:
        """Pad this segment's flat tokens to [R, Q, ...]."""
        return own_T.unflatten(0, (-1, self.num_queries)) if self.is_uniform else own_T[self.query_index_RQ]

    def unpad(self, values_RQ: Tensor) -> Tensor:
        """Undo `pad`: [R, Q, ...] to the segment's flat tokens."""
        flat = values_RQ.flatten(0, 1)
        return flat if self.is_uniform else flat[self.flat_index_T]


@dataclass(frozen=True)
class Slots:
    """The page and offset where each token's entry is written in one page group (vLLM: slot mapping)."""

    page_T: Tensor
    offset_T: Tensor
    page_tokens: int

    def check(self, num_pages: int) -> None:
        """Check on a CPU that all slots are in `num_pages` pages. Raises AssertionError."""
        for index, end in ((self.page_T.numpy(), num_pages), (self.offset_T.numpy(), self.page_tokens)):
            assert index.min() >= 0 and index.max() < end, "a slot is out of range"


@dataclass(frozen=True)
class Batch:
    """Everything that one forward needs, on the device.

    `start_R` (the index of each row's first token) and `logits_index` are in the order of the rows given.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    start_R: Tensor
    logits_index: Tensor
    slots: dict[str, Slots]
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        return self.token_ids_T.shape[0]

    @cached_property
    def prepared(self) -> dict[str, object]:
        """The data that the first layer's kernel prepares for the other layers (engine/kernels/program.py)."""
        return {}

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """Join several steps' tokens to write cache entries only: without segments to attend to, and without logits."""
        none = batches[0].start_R[:0]
        slots = {
            name: Slots(
                torch.cat([batch.slots[name].page_T for batch in batches]),
                torch.cat([batch.slots[name].offset_T for batch in batches]),
                own.page_tokens,
            )
            for name, own in batches[0].slots.items()
        }
        tokens = torch.cat([batch.token_ids_T for batch in batches])
        return cls(tokens, torch.cat([batch.positions_T for batch in batches]), none, none, slots, ())

    @classmethod
    def of(cls, rows: Sequence[Row], layout: CacheLayout, device: torch.device) -> "Batch":
        """Build a batch of rows whose page tables already reach their `end`."""
        grouped = _in_segments(rows)
        ordered = [row for group in grouped for row in group]
        positions = [p for row in ordered for p in range(row.start, row.end)]
        starts: dict[int, int] = {}
        end = 0
        for row in ordered:
            starts[id(row)] = end
            end += len(row.tokens)
        logits = [starts[id(row)] + i for row in rows for i in range(len(row.tokens) - row.num_logits, len(row.tokens))]
        slots = {n: _slots(ordered, n, layout.page_tokens, device) for n in layout.groups}
        segments, first = [], 0
        for group in grouped:
            segments.append(_segment(group, first, layout, device))
            first = segments[-1].tokens.stop
        return cls(
            _tensor([t for row in ordered for t in row.tokens], device),
            _tensor(positions, device),
            _tensor([starts[id(row)] for row in rows], device),
            _tensor(logits, device),
            slots,
            tuple(segments),
        )


def _tensor(values: list[int] | list[list[int]], device: torch.device) -> Tensor:
    return to_device(values, torch.int64, device)


def _in_segments(rows: Sequence[Row]) -> list[list[Row]]:
    short = [row for row in rows if len(row.tokens) <= SHORT_ROW_TOKENS]
    long = [[row] for row in rows if len(row.tokens) > SHORT_ROW_TOKENS]
    return [short, *long] if short else long


def _slots(rows: list[Row], group: str, page_tokens: int, device: torch.device) -> Slots:
    pages, offsets = [], []
    for row in rows:
        table = row.tables.groups[group]
        assert table.num_slots >= row.end, f"{row.tables.holder} writes at {row.end} with {table.num_slots} slots"
        for position in range(row.start, row.end):
            page, offset = divmod(position, page_tokens)
            pages.append(table.page_ids[page - table.first_page])
            offsets.append(offset)
    return Slots(_tensor(pages, device), _tensor(offsets, device), page_tokens)


def _segment(rows: list[Row], first_token: int, layout: CacheLayout, device: torch.device) -> Segment:
    num_queries = max(len(row.tokens) for row in rows)
    index, flat, base = [], [], 0
    for r, row in enumerate(rows):
        count = len(row.tokens)
        index.append([base + min(i, count - 1) for i in range(num_queries)])
        flat += [r * num_queries + i for i in range(count)]
        base += count
    queries = [[row.last_seen(i) for i in range(num_queries)] for row in rows]
    queries_RQ = _tensor(queries, device)
    flat_T = _tensor(flat, device)
    keys = {name: _keys(rows, queries_RQ, flat_T, group, device) for name, group in layout.groups.items()}
    tokens = slice(first_token, first_token + base)
    return Segment(tokens, num_queries, _tensor(index, device), flat_T, keys)


def _keys(rows: list[Row], queries_RQ: Tensor, token_index_T: Tensor, group: PageGroup, device: torch.device) -> Keys:
    """Compute the visible keys as ranges of positions, for full and window groups alike."""
    tables = [row.tables.groups[group.name] for row in rows]
    live = [group.num_pages(row.end) - table.first_page for row, table in zip(rows, tables, strict=True)]
    width = max(live)
    pages_RP = _tensor(
        [t.page_ids[:n] + [SCRATCH_PAGE] * (width - n) for t, n in zip(tables, live, strict=True)], device
    )
    first_page_R = _tensor([t.first_page for t in tables], device)
    first_R = _tensor(
        [max(row.context_from, t.first_page * group.page_tokens) for row, t in zip(rows, tables, strict=True)], device
    )
    first_RQ = first_R[:, None].expand_as(queries_RQ)
    if group.window is not None:
        first_RQ = torch.maximum(first_RQ, queries_RQ - group.window + 1)
    return Keys(pages_RP, first_page_R, first_RQ, queries_RQ, group.page_tokens, token_index_T)
