"""Stop strings against a reference that sees the whole text at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import StopStrings

letters = st.text("ab", min_size=1, max_size=4)


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(letters, max_size=3))
def test_the_text_ends_before_the_first_stop_string_for_any_chunks(pieces: list[str], stops: list[str]) -> None:
    """Sent text is never taken back, so the sum of the pieces is compared after each."""
    watch, sent, whole = StopStrings(tuple(stops)), "", ""
    for piece in pieces:
        whole += piece
        ready, stopped = watch.push(piece)
        sent += ready
        ends = [whole.index(stop) for stop in stops if stop in whole]
        assert stopped == bool(ends)
        if ends:
            assert sent == whole[: min(ends)]
            return
        assert whole.startswith(sent)
    assert sent + watch.flush() == whole


@pytest.mark.parametrize(("said", "sent"), [("x", "x"), ("xS", "x"), ("xST", "x"), ("xSx", "xSx"), ("SST", "S")])
def test_only_text_that_may_begin_a_stop_string_is_held_back(said: str, sent: str) -> None:
    assert StopStrings(("STOP",)).push(said) == (sent, False)
