"""Names of pages: equal exactly when salt and all tokens up to the page's end are."""

from hypothesis import example, given
from hypothesis import strategies as st

from engine.pages.prefix import PageName, PrefixNames

tokens = st.lists(st.integers(0, 2), max_size=30)
salts = st.sampled_from(["", "a", "b"])


@given(tokens, tokens, salts, salts, st.integers(1, 5))
@example([0, 1, 0, 1], [1, 1, 0, 1], "", "", 2)  # the second pages are alike; what came before them is not
def test_names_agree_where_the_prefixes_do(
    first: list[int], second: list[int], salt: str, other_salt: str, page_tokens: int
) -> None:
    ours = PrefixNames(page_tokens, salt).of(first, len(first))
    theirs = PrefixNames(page_tokens, other_salt).of(second, len(second))

    assert len(ours) == len(first) // page_tokens
    for page, (a, b) in enumerate(zip(ours, theirs, strict=False), start=1):
        same = salt == other_salt and first[: page * page_tokens] == second[: page * page_tokens]
        assert (a == b) == same


@given(tokens, st.lists(st.integers(0, 30)), st.integers(1, 5))
def test_a_growing_sequence_gets_the_names_of_the_whole(grown: list[int], stops: list[int], page_tokens: int) -> None:
    """Tokens behind the named pages may still change, because they were only drafted."""
    names = PrefixNames(page_tokens)
    for stop in sorted(stops):
        names.of([*grown[:stop], -1], min(stop, len(grown)))

    assert names.of(grown, len(grown)) == PrefixNames(page_tokens).of(grown, len(grown))


def test_equal_digests_are_not_enough() -> None:
    assert PageName(b"same", (1, 2)) != PageName(b"same", (1, 3))
