"""Pages run out while requests decode: the last in line is prefilled again, and nobody can tell from its tokens."""

from dataclasses import replace

import pytest

from engine.errors import Preempted
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
    assert rig.decoder.stats().preempted == len(preempted(rig))
    assert answers == make_rig().generate(growing(sampling))


def test_whoever_came_first_is_never_preempted(make_rig: MakeRig) -> None:
    rig = make_rig(decode=FEW)
    rig.generate(growing(Sampling()))

    assert preempted(rig)
    assert "r0" not in preempted(rig)


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
