"""Tests that a request preempted for its pages is prefilled again and gets the same tokens."""

from dataclasses import replace

import pytest

from engine.errors import DoesNotFit, Preempted
from engine.types import Request, RequestEnded, Sampling
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request

FEW = {"cache_bytes": 1_200_000}


def growing(sampling: Sampling) -> list[Request]:
    """Six requests that all fit when they begin, and do not when they have grown."""
    return [replace(request(f"r{i}", tokens=30 + i, max_tokens=150), sampling=sampling) for i in range(6)]


def preempted(rig: Rig) -> list[str]:
    return [e.request_id for e in rig.events if isinstance(e, RequestEnded) and isinstance(e.error, Preempted)]


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


def test_the_oldest_request_is_never_preempted(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    rig.generate(growing(Sampling()))

    assert preempted(rig)
    assert "r0" not in preempted(rig)


def test_a_lower_priority_is_preempted_first_even_if_it_is_older(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    asked = [replace(one, priority=-i) for i, one in enumerate(growing(Sampling()))]
    for one in asked:
        rig.add(one)
        rig.until(lambda one=one: rig.decoding(one.id))
    rig.run()

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


def test_pages_before_the_window_are_freed_while_the_request_decodes(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add(request("r", tokens=10, max_tokens=400))
    most = 0

    while not rig.idle:
        rig.step()
        most = max(most, rig.decoder.stats().pages["window70"].held)

    assert most <= rig.builder.layout.groups["window70"].peak_pages(410, step_tokens=1) < 410 // 64


def test_the_youngest_request_is_preempted_when_it_has_no_page_for_its_next_token(make_rig: MakeRig) -> None:
    """No other request needs its pages, but another replica may have room for it."""
    rig = make_rig(prefill={"chunk_tokens": 2048}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("last", tokens=120, max_tokens=30))
    rig.until(lambda: rig.decoding("last"))
    rig.add(replace(request("first", tokens=64 * (total - 3) + 1, max_tokens=40), priority=-1))
    rig.run()

    assert preempted(rig) == ["last"]
    assert (len(rig.tokens("first")), len(rig.tokens("last"))) == (40, 30)


@pytest.mark.parametrize("tokens", [64, 30])
def test_no_request_is_admitted_that_would_be_preempted_at_once(make_rig: MakeRig, tokens: int) -> None:
    """There is a page for its tokens, and none for the next token, or for a page of tokens more."""
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
def test_a_younger_request_being_read_is_preempted_first(make_rig: MakeRig, others: list[str]) -> None:
    """An older one once was, because only running requests were compared. For an older one's token it is preempted."""
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


def test_the_lowest_priority_is_preempted_first(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    asked = [replace(one, priority=-i) for i, one in enumerate(growing(Sampling()))]
    rig.generate(asked)

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


def test_a_resumed_request_keeps_its_age(make_rig: MakeRig) -> None:
    """The gateway sends the age of a request, so a retry does not lose its precedence."""
    rig = make_rig(decode=FEW)
    asked = [replace(one, age_seconds=float(i)) for i, one in enumerate(growing(Sampling()))]
    rig.generate(asked)

    assert preempted(rig)[0] == "r0"
    assert "r5" not in preempted(rig)


@pytest.mark.parametrize("full", ["prefill", "decode"])
def test_a_resumed_request_is_not_refused_by_a_full_queue(make_rig: MakeRig, full: str) -> None:
    """It once was: a request that was sent again after its pages were lost, with half of its output."""
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
    """It once ended the pair: prompt and output do not fit in the prefill replica's pages."""
    rig = make_rig(prefill={"cache_bytes": 600_000}, decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    for name in ("a", "b"):
        rig.add(request(name, tokens=10, max_tokens=64 * total - 10))
    run_long(rig)

    assert len(rig.tokens("a")) == 64 * total - 10
    assert isinstance(rig.errors["b"], DoesNotFit)


def test_one_request_may_use_all_pages(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("r", tokens=10, max_tokens=64 * total - 10))
    run_long(rig)

    assert len(rig.tokens("r")) == 64 * total - 10
    assert preempted(rig) == []


def test_two_requests_that_need_all_pages_both_finish(make_rig: MakeRig) -> None:
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
