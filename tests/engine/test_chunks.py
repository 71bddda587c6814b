"""Chunks that wait together go as one and say the same."""

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Chunk, DecodeTimings, Event, FinishReason, RequestEnded, merge_chunks

TIMINGS = DecodeTimings(wait_seconds=1, transfer_seconds=2, decode_seconds=3, moved_bytes=4, moved_pages=5)


def chunks(request_id: str) -> st.SearchStrategy[list[Chunk]]:
    """An answer: some chunks, the last one finished."""
    tokens = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    one = st.builds(
        lambda tokens, text: Chunk(
            request_id=request_id, tokens=tokens, logprobs=tuple(-t / 2 for t in tokens), text=text
        ),
        tokens,
        st.text(max_size=3),
    )
    return st.lists(one, min_size=1, max_size=6).map(
        lambda made: [*made[:-1], replace(made[-1], finish=FinishReason.STOP, timings=TIMINGS)]
    )


@st.composite
def interleaved(draw: st.DrawFn) -> list[Event]:
    """Several answers mixed, one of them cut off by an end."""
    answers: list[list[Event]] = [[*draw(chunks(name))] for name in "abc"]
    answers.append([*draw(chunks("d"))[:-1], RequestEnded(request_id="d")])
    events: list[Event] = []
    while any(answers):
        events.append(draw(st.sampled_from([answer for answer in answers if answer])).pop(0))
    return events


def said(events: list[Event]) -> dict[str, tuple[object, ...]]:
    """Return what each request received, independent of its chunks."""
    by_request: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_request[event.request_id].append(event)
    received = {}
    for request_id, mine in by_request.items():
        parts = [event for event in mine if isinstance(event, Chunk)]
        tokens = [token for part in parts for token in part.tokens]
        logprobs = [logprob for part in parts for logprob in part.logprobs]
        ends = [(part.finish, part.timings) for part in parts if part.finish is not None]
        text = "".join(part.text for part in parts)
        received[request_id] = (tokens, logprobs, text, ends, [e for e in mine if isinstance(e, RequestEnded)])
    return received


@settings(max_examples=50)
@given(interleaved())
def test_merging_chunks_keeps_every_requests_output(events: list[Event]) -> None:
    assert said(merge_chunks(events)) == said(events)


@settings(max_examples=50)
@given(interleaved())
def test_adjacent_chunks_of_one_request_are_merged(events: list[Event]) -> None:
    whole = merge_chunks(events)

    for before, after in pairwise(whole):
        assert not (isinstance(before, Chunk) and isinstance(after, Chunk) and before.request_id == after.request_id)
    assert merge_chunks(whole) == whole


@dataclass(frozen=True, kw_only=True)
class Wider(Chunk):
    ranks: tuple[int, ...] = ()


def test_joining_finds_the_per_token_fields_by_itself() -> None:
    """Fields with an entry per token are concatenated by their type, under any name."""
    parts = [Wider(request_id="a", tokens=(i,), logprobs=(0.0,), text=str(i), ranks=(i, i)) for i in range(3)]

    whole = Wider.joined(parts)

    assert whole == Wider(request_id="a", tokens=(0, 1, 2), logprobs=(0.0,) * 3, text="012", ranks=(0, 0, 1, 1, 2, 2))
