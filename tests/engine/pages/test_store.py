import hashlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.pages import CacheLayout, Entry, PageStore

PAGE_TOKENS, NUM_PAGES = 16, 5
LAYOUT = CacheLayout.of(
    [
        Entry(layer=0, name="k", shape=(2, 3), dtype=torch.float32),
        Entry(layer=0, name="v", shape=(5,), dtype=torch.bfloat16),
        Entry(layer=1, name="k", shape=(7,), dtype=torch.float32, window=20),
        Entry(layer=0, name="k", shape=(3,), dtype=torch.float32, part="drafter"),
    ],
    PAGE_TOKENS,
)
KEYS = sorted(LAYOUT.group_of)


def random_store() -> PageStore:
    torch.manual_seed(0)
    store = PageStore(LAYOUT, dict.fromkeys(LAYOUT.groups, NUM_PAGES), torch.device("cpu"))
    for key in KEYS:
        rows = store.slab(key).rows
        rows.copy_(torch.randn(rows.shape))
    return store


def test_writing_one_slab_changes_its_own_rows_and_nothing_else() -> None:
    for key in KEYS:
        store = random_store()
        rows = store.slab(key).rows
        untouched = {other: digest(store.slab(other).rows) for other in KEYS if other != key}
        before = rows.clone()
        pages, offsets = torch.tensor([2, 2, 5]), torch.tensor([0, 15, 3])
        values = torch.randn(3, *rows.shape[2:]).to(rows.dtype)

        store.slab(key).write(pages, offsets, values)

        assert {other: digest(store.slab(other).rows) for other in untouched} == untouched
        assert torch.equal(rows[pages, offsets], values)
        rows[pages, offsets] = before[pages, offsets]
        assert torch.equal(rows, before), "a row changed that was not written"


@settings(max_examples=30)
@given(st.sampled_from(KEYS), st.lists(st.lists(st.integers(0, NUM_PAGES), min_size=3, max_size=3), min_size=1))
def test_gather_returns_whole_pages_in_the_order_asked(key: tuple[str, int, str], pages: list[list[int]]) -> None:
    slab = random_store().slab(key)

    gathered = slab.gather(torch.tensor(pages))

    assert torch.equal(gathered, torch.stack([torch.cat([slab.rows[page] for page in row]) for row in pages]))


def test_there_is_one_record_more_than_pages_for_padding() -> None:
    store = PageStore(LAYOUT, dict.fromkeys(LAYOUT.groups, NUM_PAGES), torch.device("cpu"))

    assert {records.shape[0] for records in store.records.values()} == {NUM_PAGES + 1}
    assert store.num_bytes == (NUM_PAGES + 1) * sum(group.page_bytes for group in LAYOUT.groups.values())
    assert not any(records.any() for records in store.records.values()), "masked keys must be finite"


def test_records_beyond_four_gigabytes_are_addressed_exactly() -> None:
    num_pages = 2**26
    store = PageStore(LAYOUT, dict.fromkeys(LAYOUT.groups, num_pages), torch.device("meta"))

    for key, group in LAYOUT.group_of.items():
        last = store.slab(key).rows[num_pages]
        assert last.storage_offset() * last.element_size() == num_pages * group.page_bytes + group.offsets[key]


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
