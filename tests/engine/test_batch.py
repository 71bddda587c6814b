"""A batch of rows of every length, against what each row should see, position by position."""

import random
from dataclasses import dataclass

import pytest
import torch

from engine.batch import SHORT_ROW_TOKENS, Batch, Row
from engine.pages import CacheLayout, Entry, Pages, PageStore

PAGE_TOKENS, WINDOW = 16, 21
LAYOUT = CacheLayout.of(
    [
        Entry(layer=0, name="k", shape=(1,), dtype=torch.float32),
        Entry(layer=1, name="k", shape=(1,), dtype=torch.float32, window=WINDOW),
    ],
    PAGE_TOKENS,
)
CPU = torch.device("cpu")
TOKEN = 10_000  # token ids say whose they are and where: row * TOKEN + position


@dataclass(frozen=True)
class Case:
    rows: list[Row]
    batch: Batch

    def owner(self, group: str, page: int) -> tuple[int, int] | None:
        """(row, logical page) of a page id; None for the scratch page."""
        for r, row in enumerate(self.rows):
            table = row.tables.groups[group]
            if page in table.page_ids:
                return r, table.first_page + table.page_ids.index(page)
        return None


def make(seed: int) -> Case:
    """Up to 9 rows of up to 60 tokens that start anywhere, on pages in disorder."""
    rng = random.Random(seed)
    pages = Pages(LAYOUT, PageStore(LAYOUT, dict.fromkeys(LAYOUT.groups, 200), CPU))
    rows = []
    for r in range(rng.randint(1, 9)):
        start = rng.choice([0, 1, PAGE_TOKENS - 1, PAGE_TOKENS, WINDOW, 77, 130])
        length = rng.choice([1, 1, 2, SHORT_ROW_TOKENS, SHORT_ROW_TOKENS + 1, 60])
        tables = pages.open(f"row-{r}")
        for end in (start, start + length):
            assert pages.extend(tables, end)
            pages.trim(tables, start)
            for table in tables.groups.values():
                rng.shuffle(table.page_ids)
        tokens = [r * TOKEN + p for p in range(start, start + length)]
        rows.append(Row(tokens, start, tables, num_logits=rng.choice([0, 1, length])))
    return Case(rows, Batch.of(rows, LAYOUT, CPU))


cases = pytest.mark.parametrize("case", [make(seed) for seed in range(25)], ids=range(25))


@cases
def test_every_token_occurs_once_at_its_position(case: Case) -> None:
    batch = case.batch

    assert sorted(batch.token_ids_T.tolist()) == [t for row in case.rows for t in row.tokens]
    assert batch.positions_T.tolist() == [t % TOKEN for t in batch.token_ids_T.tolist()]
    assert batch.num_tokens == sum(len(row.tokens) for row in case.rows)


@cases
def test_logits_are_in_the_order_of_the_rows(case: Case) -> None:
    wanted = [t for row in case.rows if row.num_logits for t in row.tokens[-row.num_logits :]]

    assert case.batch.token_ids_T[case.batch.logits_index].tolist() == wanted


@cases
def test_every_token_is_written_at_its_own_slot(case: Case) -> None:
    for group, slots in case.batch.slots.items():
        places = zip(case.batch.token_ids_T.tolist(), slots.page_T.tolist(), slots.offset_T.tolist(), strict=True)
        for token, page, offset in places:
            r, position = divmod(token, TOKEN)
            assert case.owner(group, page) == (r, position // PAGE_TOKENS)
            assert offset == position % PAGE_TOKENS


@cases
@pytest.mark.parametrize("group", LAYOUT.groups)
def test_every_query_sees_its_own_past_inside_the_window_and_nothing_else(case: Case, group: str) -> None:
    window = LAYOUT.groups[group].window or TOKEN
    for segment in case.batch.segments:
        keys = segment.keys[group]
        query_RQ = segment.pad(case.batch.token_ids_T[segment.tokens])
        for r, pages in enumerate(keys.pages_RP.tolist()):
            owners = [case.owner(group, page) for page in pages]
            for q, token in enumerate(query_RQ[r].tolist()):
                whose, position = divmod(token, TOKEN)
                seen = keys.mask_R1QK[r, 0, q].nonzero().flatten().tolist()
                expected = range(max(0, position - window + 1), position + 1)
                assert [where(owners, key) for key in seen] == [(whose, p) for p in expected]


def where(owners: list[tuple[int, int] | None], key: int) -> tuple[int, int] | None:
    """(row, position) that key number `key` of some gathered pages belongs to."""
    page, offset = divmod(key, PAGE_TOKENS)
    owner = owners[page]
    return owner and (owner[0], owner[1] * PAGE_TOKENS + offset)


@cases
def test_unpadding_undoes_padding_and_the_segments_cover_the_batch(case: Case) -> None:
    values_T2 = torch.randn(case.batch.num_tokens, 2)

    parts = [segment.unpad(segment.pad(values_T2[segment.tokens])) for segment in case.batch.segments]

    assert torch.equal(torch.cat(parts), values_T2)


@cases
def test_a_long_row_has_a_segment_to_itself(case: Case) -> None:
    for segment in case.batch.segments:
        assert segment.num_queries <= SHORT_ROW_TOKENS or segment.query_index_RQ.shape[0] == 1


def test_a_row_beyond_its_page_tables_raises() -> None:
    pages = Pages(LAYOUT, PageStore(LAYOUT, dict.fromkeys(LAYOUT.groups, 9), CPU))
    tables = pages.open("r")
    assert pages.extend(tables, PAGE_TOKENS)

    with pytest.raises(AssertionError, match="r writes at 17 with 16 slots"):
        Batch.of([Row([1], PAGE_TOKENS, tables, 1)], LAYOUT, CPU)
