"""Tests that requests with a common prefix share pages in both pools and get the same tokens."""

from dataclasses import replace

import pytest

from engine.types import Handoff, Request, Sampling
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, prompt, request

SYSTEM = prompt("system", 150)  # two full pages and 22 tokens; the sliding layers see 70 back


def asks(name: str, tokens: int, **changes: object) -> Request:
    """A question after the system prompt."""
    one = request(name, max_tokens=12)
    return replace(one, prompt=SYSTEM + prompt(name, tokens), **changes)


def hits(rig: Rig) -> tuple[int, int]:
    """Tokens found in pages so far: by prefill, by decode."""
    return rig.prefiller.stats().counters.prefix_hit_tokens, rig.decoder.stats().counters.prefix_hit_tokens


def alone(make_rig: MakeRig, one: Request) -> list[int]:
    rig = make_rig(prefill={"prefix_caching": False}, decode={"prefix_caching": False})
    rig.add(one)
    rig.run()
    assert hits(rig) == (0, 0)
    return rig.tokens(one.id)


def test_a_shared_prefix_is_neither_computed_nor_transferred_again(rig: Rig, make_rig: MakeRig) -> None:
    rig.add(asks("first", 10))
    rig.run()
    assert hits(rig) == (0, 0)
    steps, moved = rig.prefiller.stats().counters.tokens, rig.decoder.stats().transfers.moved_pages

    rig.add(asks("second", 30))
    rig.run()

    assert hits(rig) == (128, 128)
    assert rig.prefiller.stats().counters.tokens - steps == 180 - 128
    assert [event.cached_tokens for event in rig.events if isinstance(event, Handoff)] == [0, 128]
    assert rig.decoder.stats().transfers.moved_pages - moved == 2, "one page of 52 tokens in each of two groups"
    assert rig.tokens("second") == alone(make_rig, asks("second", 30))


def test_a_repeated_prompt_computes_one_token_on_a_page_of_its_own(rig: Rig, make_rig: MakeRig) -> None:
    """192 tokens are three full pages: all are cached, but the last token's logits are needed."""
    one = asks("one", 42)
    rig.add(one)
    rig.run()
    before = rig.prefiller.stats().counters.tokens

    for i in range(3):
        rig.add(replace(one, id=f"again {i}"))
    rig.run()

    assert rig.prefiller.stats().counters.tokens - before == 3
    assert hits(rig) == (3 * 191, 3 * 192)
    assert rig.decoder.stats().transfers.reads == 1, "decode had every page"
    assert {tuple(rig.tokens(f"again {i}")) for i in range(3)} == {tuple(alone(make_rig, one))}


def test_generated_tokens_are_cached_for_the_next_turn(rig: Rig, make_rig: MakeRig) -> None:
    first = replace(asks("first", 10), stop=replace(asks("", 0).stop, max_tokens=80))
    rig.add(first)
    rig.run()
    turn = replace(first, id="turn", prompt=(*first.prompt, *rig.tokens("first"), *prompt("turn", 9)))

    rig.add(turn)
    rig.run()

    assert hits(rig) == (128, 192), "prefill computed the prompt only; decode has its own tokens' pages too"
    assert rig.tokens("turn") == alone(make_rig, turn)


@pytest.mark.parametrize("seeded", [False, True])
def test_many_requests_share_few_pages(make_rig: MakeRig, seeded: bool) -> None:
    """Pages are shared while others hold them, cached, evicted and found again, all in one run."""
    sampling = Sampling(temperature=1.0, seed=3, seeded=True) if seeded else Sampling()
    asked = [asks(f"r{i % 12} {i % 7}", 5 + 23 * (i % 7), sampling=sampling) for i in range(30)]
    asked = [replace(one, id=f"{i}") for i, one in enumerate(asked)]
    rig = make_rig(prefill={"cache_bytes": 1_200_000, "max_requests": 4}, decode={"cache_bytes": 1_200_000})

    answers = rig.generate(asked)

    assert min(hits(rig)) > 1000
    plain = make_rig(prefill={"prefix_caching": False}, decode={"prefix_caching": False}).generate(asked)
    assert answers == plain


def test_tenants_share_nothing(rig: Rig) -> None:
    for salt in ("", "alice", "bob"):
        rig.add(asks("same", 42, id=f"of {salt}", cache_salt=salt))
        rig.run()

    assert hits(rig) == (0, 0)
    rig.add(asks("same", 42, id="alice again", cache_salt="alice"))
    rig.run()
    assert min(hits(rig)) > 0
    assert len({tuple(rig.tokens(name)) for name in ("of ", "of alice", "of bob", "alice again")}) == 1


def test_a_cancelled_prompt_leaves_its_complete_pages_cached(rig: Rig) -> None:
    rig.add(asks("gone", 100))
    rig.step()
    rig.step()
    rig.cancel("gone")
    rig.add(asks("next", 100))
    rig.run()

    assert hits(rig)[0] == 128


def test_a_fully_cached_prompt_starts_even_when_no_page_is_free_for_a_copy(make_rig: MakeRig) -> None:
    """The pool has no other page: the last one is computed again instead of copied."""
    rig = make_rig(prefill={"cache_bytes": 1_200_000})
    total = rig.prefiller.stats().pages["full"].total
    one = request("r", tokens=64 * total, max_tokens=1)
    rig.add(one)
    rig.run()
    assert rig.prefiller.stats().pages["full"].free == 0

    rig.add(replace(one, id="again"))
    rig.run()

    assert rig.tokens("again") == rig.tokens("r")
    assert hits(rig)[0] == 64 * (total - 1)


def test_pages_that_were_read_are_cached_even_if_their_request_never_runs(rig: Rig) -> None:
    rig.add(asks("gone", 10))
    rig.until(lambda: rig.phases() == {"gone": "releasing"})
    rig.prefiller.step()
    rig.decoder.admit()
    rig.cancel("gone")

    rig.add(asks("next", 10))
    rig.run()

    assert hits(rig)[1] == 128


def test_prompt_logprobs_are_computed_for_every_token(rig: Rig) -> None:
    handoffs = []
    for name in ("first", "again"):
        rig.add(asks("same", 10, id=name, prompt_logprobs=True))
        handoffs += rig.prefiller.step() + rig.prefiller.step() + rig.prefiller.step()

    assert [len(handoff.prompt_logprobs) for handoff in handoffs] == [159, 159]
    assert handoffs[0].prompt_logprobs == pytest.approx(handoffs[1].prompt_logprobs, abs=1e-4)
    assert hits(rig)[0] == 0
