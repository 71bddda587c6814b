"""Pages run out while requests decode: the last in line is prefilled again, and nobody can tell from its tokens."""

from dataclasses import replace

import pytest

from engine.errors import DoesNotFit, Preempted
from engine.types import Ended, Request, Sampling
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request

FEW = {"cache_bytes": 1_200_000}


def growing(sampling: Sampling) -> list[Request]:
    """Six requests that all fit when they begin, and do not when they have grown."""
    return [replace(request(f"r{i}", tokens=30 + i, max_tokens=150), sampling=sampling) for i in range(6)]


def preempted(rig: Rig) -> list[str]:
    return [e.request_id for e in rig.events if isinstance(e, Ended) and isinstance(e.error, Preempted)]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=9, seeded=True)], ids=str)
def test_tokens_are_those_of_requests_that_were_never_disturbed(
    make_rig: MakeRig, sampling: Sampling, sharing: bool
) -> None:
    rig = make_rig(decode={**FEW, "prefix_caching": sharing})
    answers = rig.generate(growing(sampling))

    assert len(preempted(rig)) > 0
    assert rig.decoder.stats().counters.preempted == len(preempted(rig))
    assert answers == make_rig().generate(growing(sampling))


def test_whoever_came_first_is_never_preempted(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    rig.generate(growing(Sampling()))

    assert preempted(rig)
    assert "r0" not in preempted(rig)


def test_what_matters_less_goes_first_even_if_it_was_there_before(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    asked = [replace(one, priority=-i) for i, one in enumerate(growing(Sampling()))]
    for one in asked:
        rig.add(one)
        rig.until(lambda one=one: rig.decoding(one.id))
    rig.run()

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


def test_pages_that_the_window_has_passed_come_back_while_the_request_decodes(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add(request("r", tokens=10, max_tokens=400))
    most = 0

    while not rig.idle:
        rig.step()
        most = max(most, rig.decoder.stats().pages["window70"].held)

    assert most <= rig.builder.layout.groups["window70"].peak_pages(410, step_tokens=1) < 410 // 64


def test_the_last_in_line_leaves_when_it_has_no_page_for_its_next_token(make_rig: MakeRig) -> None:
    """Nobody asked for its pages, but where it goes there may be room for it."""
    rig = make_rig(prefill={"chunk_tokens": 2048}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("last", tokens=120, max_tokens=30))
    rig.until(lambda: rig.decoding("last"))
    rig.add(replace(request("first", tokens=64 * (total - 3) + 1, max_tokens=40), priority=-1))
    rig.run()

    assert preempted(rig) == ["last"]
    assert (len(rig.tokens("first")), len(rig.tokens("last"))) == (40, 30)


@pytest.mark.parametrize("tokens", [64, 30])
def test_nobody_is_let_in_who_would_have_to_leave_at_once(make_rig: MakeRig, tokens: int) -> None:
    """There is a page for what it has, and none for its next token, or for a page of tokens more."""
    rig = make_rig(prefill={"chunk_tokens": 2048}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("old", tokens=64 * (total - 2) + 1, max_tokens=60))
    rig.until(lambda: rig.decoding("old"))
    rig.add(request("new", tokens=tokens, max_tokens=100))
    rig.until(lambda: rig.phases() == {"new": "waiting"})
    rig.run()

    assert preempted(rig) == []
    assert len(rig.tokens("new")) == 100


@pytest.mark.parametrize("others", [[], ["middle"]])
def test_nobody_leaves_for_its_own_next_token_while_a_younger_one_is_read(make_rig: MakeRig, others: list[str]) -> None:
    """It once did, although it was older: only those that run were in line. For an older one's token it leaves."""
    rig = make_rig(prefill={"chunk_tokens": 2048}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    for one in (request("old", tokens=120, max_tokens=120), *(request(name, max_tokens=120) for name in others)):
        rig.add(one)
    rig.until(lambda: all(rig.decoding(name) for name in ["old", *others]))
    rig.wire.stalled = True
    rig.add(request("young", tokens=64 * (total - 4 - len(others)) + 1, max_tokens=80))
    rig.until(lambda: rig.phases() == {"young": "reading"})
    for _ in range(100):
        rig.step()

    assert preempted(rig) == others
    assert rig.decoding("old")
    rig.wire.stalled = False
    rig.run()
    assert [len(rig.tokens(name)) for name in ("old", *others, "young")] == [120, *(120 for _ in others), 80]


def test_whoever_matters_least_goes_first(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    asked = [replace(one, priority=-i) for i, one in enumerate(growing(Sampling()))]
    rig.generate(asked)

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


def test_an_old_request_that_comes_back_is_still_old(make_rig: MakeRig) -> None:
    """The gateway says how long a request has been under way, so being sent again costs it no place in line."""
    rig = make_rig(decode=FEW)
    asked = [replace(one, age_seconds=float(i)) for i, one in enumerate(growing(Sampling()))]
    rig.generate(asked)

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


@pytest.mark.parametrize("full", ["prefill", "decode"])
def test_who_has_begun_is_not_turned_away_by_a_full_queue(make_rig: MakeRig, full: str) -> None:
    """It once was: a request that came back after its pages were lost, its answer half said."""
    rig = make_rig(prefill={"max_waiting": 1}, decode={"max_requests": 1, "max_waiting": 1})
    rig.add(request("first", max_tokens=100))
    rig.until(lambda: rig.decoding("first"))
    rig.add(request("second"))
    if full == "decode":
        rig.until(lambda: rig.phases() == {"second": "waiting"})

    rig.add(request("again", max_tokens=9).resumed((1, 2, 3)))
    rig.run()

    assert not rig.errors
    assert len(rig.tokens("again")) == 6


def test_a_request_too_long_to_be_prefilled_again_ends_alone(make_rig: MakeRig) -> None:
    """It once ended the pair: what it has said by now does not fit in the prefill replica's pages."""
    rig = make_rig(prefill={"cache_bytes": 600_000}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    for name in ("a", "b"):
        rig.add(request(name, tokens=10, max_tokens=64 * total - 10))
    run_long(rig)

    assert len(rig.tokens("a")) == 64 * total - 10
    assert isinstance(rig.errors["b"], DoesNotFit)


def test_one_request_may_have_all_the_pages(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("r", tokens=10, max_tokens=64 * total - 10))
    run_long(rig)

    assert len(rig.tokens("r")) == 64 * total - 10
    assert preempted(rig) == []


def test_two_requests_that_need_all_the_pages_both_end(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    for name in ("a", "b"):
        rig.add(request(name, tokens=10, max_tokens=64 * total - 10))
    run_long(rig)

    assert len(rig.tokens("a")) == len(rig.tokens("b")) == 64 * total - 10
    assert set(preempted(rig)) == {"b"}


def run_long(rig: Rig) -> None:
    while not rig.idle:
        rig.step()
    rig.assert_consistent()
