"""Prompts and answers over the same pages: who gets pages and seats, and who gives way when they run out."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import SHIPPED_DRAFTER, Config
from engine.errors import Preempted
from engine.models import load_model
from engine.types import Request, RequestEnded
from local import Builder, build
from tests.drafters import save_random_drafter
from tests.local.conftest import MakeMixed
from tests.local.mixed import MixedPair, MixedRig
from tests.local.rig import request
from tests.local.test_disturbed import CHEAP, checkpoint, quiet, requests, tight, tokens

__all__ = ["checkpoint"]  # a fixture
FEW = {"cache_bytes": 1_200_000, "local_chunk_tokens": 64}


@pytest.fixture
def rig(make_mixed: MakeMixed) -> MixedRig:
    """A few pages."""
    return make_mixed(prefill={"chunk_tokens": 2048}, decode=FEW)


def preempted(rig: MixedRig) -> list[str]:
    return [e.request_id for e in rig.events if isinstance(e, RequestEnded) and isinstance(e.error, Preempted)]


def test_a_younger_prompt_gives_its_pages_to_an_older_decoding_request(rig: MixedRig) -> None:
    """The prompt restarts in the same replica, without the gateway."""
    rig.serve(request("old", tokens=120, max_tokens=90))
    rig.until(lambda: rig.decoding("old"))
    rig.serve(request("young", tokens=64 * (rig.total - 4) + 1, max_tokens=90))
    rig.until(lambda: rig.prefilling("young"))
    grown = rig.colocated.decoder._pages.open("another request")
    free = rig.colocated.stats().pages["full"].free
    held = rig.colocated.stats().pages["full"].held
    young = rig.colocated.prefiller._schedule.running[0]
    while rig.prefilling("young") and young.remaining > 64:
        rig.step()
    assert (free, held) != (0, 0)
    assert rig.colocated.decoder._pages.extend(grown, 64 * rig.colocated.stats().pages["full"].free)  # nothing is left
    rig.until(lambda: rig.waiting("young"))

    assert rig.decoding("old")
    assert rig.colocated.stats().counters.preempted >= 1
    assert preempted(rig) == []
    rig.colocated.decoder._pages.release(grown)
    rig.run()
    assert [len(rig.tokens(name)) for name in ("old", "young")] == [90, 90]


def test_an_older_prompt_takes_the_pages_of_a_younger_decoding_request(rig: MixedRig) -> None:
    """There was room when it started, and another request has taken it: the younger one returns to the gateway."""
    rig.serve(request("young", tokens=70, max_tokens=150))
    rig.until(lambda: rig.decoding("young"))
    rig.serve(replace(request("old", tokens=64 * (rig.total - 4) + 1, max_tokens=60), priority=-1))
    rig.until(lambda: rig.prefilling("old"))
    grown = rig.colocated.decoder._pages.open("another request")
    assert rig.colocated.decoder._pages.extend(grown, 64 * rig.colocated.stats().pages["full"].free)
    for _ in range(10):  # the answer itself needs no page for longer
        rig.step()

    assert preempted(rig) == ["young"]
    assert rig.prefilling("old") and rig.waiting("young")
    assert rig.colocated.prefiller.stats().counters.preempted == 0
    rig.colocated.decoder._pages.release(grown)
    rig.run()
    assert [len(rig.tokens(name)) for name in ("old", "young")] == [60, 150]


def test_no_request_starts_that_would_be_preempted_at_once(rig: MixedRig) -> None:
    """There is a page for its prompt, and none for its output."""
    rig.serve(request("old", tokens=64 * (rig.total - 2) + 1, max_tokens=60))
    rig.until(lambda: rig.decoding("old"))
    rig.serve(request("new", tokens=60, max_tokens=100))
    for _ in range(20):
        rig.step()
    assert rig.waiting("new")
    rig.run()

    assert rig.colocated.stats().counters.preempted == 0
    assert len(rig.tokens("new")) == 100


@pytest.mark.parametrize("waits", ["served", "handed over"])
def test_no_request_overtakes_one_that_waits_for_pages(rig: MixedRig, waits: str) -> None:
    """Small requests would fit, but a steady stream of them would starve it."""
    rig.serve(request("runs", tokens=64 * (rig.total - 3) + 1, max_tokens=60))
    rig.until(lambda: rig.decoding("runs"))
    large = replace(request("large", tokens=64 * (rig.total - 2), max_tokens=20), age_seconds=1.0)
    first, then = (rig.serve, rig.add) if waits == "served" else (rig.add, rig.serve)
    first(large)
    for _ in range(20):
        rig.step()
    then(request("small", tokens=5, max_tokens=3))
    for _ in range(10):
        rig.step()

    assert rig.decoding("runs")
    wait = {name for name in ("large", "small") if rig.waiting(name) or rig.phases().get(name) == "waiting"}
    assert wait == {"large", "small"}
    rig.run()
    assert len(rig.tokens("large")) == 20


@pytest.mark.parametrize("way", ["served", "handed over", "both"])
def test_prompts_and_decoding_requests_share_max_requests(make_mixed: MakeMixed, way: str) -> None:
    rig = make_mixed(decode={"max_requests": 2, "local_chunk_tokens": 16})
    for i in range(6):
        one = request(f"r{i}", tokens=40, max_tokens=10)
        (rig.serve if way == "served" or (way == "both" and i % 2) else rig.add)(one)
    most = 0
    while not rig.idle:
        rig.step()
        most = max(most, rig.colocated.stats().running + rig.colocated.decoder._inbox.holding)

    assert most == 2
    assert [len(rig.tokens(f"r{i}")) for i in range(6)] == [10] * 6
    rig.assert_consistent()


def test_an_engine_that_only_waits_for_a_read_does_not_spin(make_mixed: MakeMixed) -> None:
    rig = make_mixed(decode={"max_requests": 1})
    rig.wire.stalled = True
    rig.add(request("read"))
    rig.until(lambda: rig.phases() == {"read": "reading"})
    rig.serve(request("waits"))
    rig.step()

    assert rig.waiting("waits")
    assert rig.colocated.next_deadline() == rig.clock.now() + rig.builder.config.transfer.poll_seconds
    rig.wire.stalled = False
    rig.run()


@pytest.mark.parametrize("seed", range(12))
def test_every_request_ends_with_its_tokens_under_random_events(make_mixed: MakeMixed, seed: int) -> None:
    """Requests arrive by both paths at random, with cancellations and stalled reads, over few pages."""
    rng = random.Random(seed)
    decode = {**FEW, "local_chunk_tokens": rng.choice([7, 32, 64]), "max_requests": rng.choice([2, 4, 32])}
    rig = make_mixed(decode={**decode, "prefix_caching": seed % 3 > 0})
    coming = [
        replace(
            request(f"r{i % 9}", tokens=rng.choice([1, 20, 63, 64, 65, 130, 250]), max_tokens=rng.randrange(1, 120)),
            id=f"{i}",
            priority=rng.choice([-1, 0, 0, 1]),
        )
        for i in range(24)
    ]
    given_up: set[str] = set()
    for one in coming:
        rng.choice([rig.serve, rig.add])(one)
        for _ in range(rng.choice([0, 1, 3, 9])):
            rig.wire.stalled = rng.random() < 0.2
            rig.step()
            rig.assert_consistent()
        if rng.random() < 0.25:
            given_up.add(gone := rng.choice(coming).id)
            rig.cancel(gone)
    rig.wire.stalled = False
    for _ in range(20_000):
        if rig.idle:
            break
        rig.step()
    rig.assert_consistent()

    assert rig.idle and not rig.errors
    rig.colocated._pages.assert_idle()
    kept = [one for one in coming if one.id not in given_up]
    for one in kept:
        assert len(rig.tokens(one.id)) == one.stop.max_tokens
    alone = make_mixed(prefill={"cache_bytes": 16 * 2**20}, decode={"cache_bytes": 16 * 2**20})
    for one in kept[::4]:
        alone.add(one)
    alone.run()
    assert all(rig.tokens(one.id) == alone.tokens(one.id) for one in kept[::4])


def disturbed(engines: MixedPair, asked: list[Request]) -> None:
    """As in test_disturbed.py; every second one is served, and every third of the others that are given up."""
    others = [Request(**{**vars(one), "id": f"other {one.id}"}) for one in asked[::3]]
    for wave, steps in ((asked[:10] + others, 12), (asked[10:], 6)):
        for i, one in enumerate(wave):
            (engines.serve if i % 2 else engines.add)(one)
        for step in range(steps):
            engines.wire.stalled = step % 4 == 1
            engines.step()
        for one in others[::2]:
            engines.cancel(one.id)
    for one in others:
        engines.cancel(one.id)
    engines.wire.stalled = False
    engines.run()
    assert not engines.errors


@pytest.mark.parametrize(
    ("checkpoint", "drafter", "decode"),
    [
        ("shipped", "shipped", {"planner": "causal"}),
        ("deepseek_v3", None, {}),
        ("deepseek_v3", "mtp", {"planner": "fixed"}),
        ("qwen3", "random", {"planner": "lagged"}),
        ("qwen3_sliding", None, {}),
        ("qwen3_sliding", "random", {"planner": "fixed", "fixed_drafts": 5}),
    ],
    ids=str,
    indirect=["checkpoint"],
)
def test_disturbed_requests_get_the_tokens_of_undisturbed_ones(
    checkpoint: Path, drafter: str | None, decode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "profiled", lambda *_: CHEAP)
    model, asked = load_model(checkpoint, torch.float32, torch.device("cpu")), requests()
    expected = quiet(checkpoint, model).generate(asked)
    sources: dict[str | None, Any] = {"shipped": SHIPPED_DRAFTER, "mtp": "mtp", None: None}
    source = sources[drafter] if drafter in sources else save_random_drafter(checkpoint, tmp_path)
    config: Config = tight(model, {"drafter": source, "mtp_drafts": 3}, {**decode, "local_chunk_tokens": 24})
    engines = MixedPair(config, builder=Builder(config, config.prefill, model))

    disturbed(engines, asked)

    counters, transfers = engines.colocated.stats().counters, engines.colocated.stats().transfers
    assert min(counters.preempted, counters.prefix_hit_tokens, counters.local_prefills, transfers.reads) > 0
    assert (counters.drafted > 0) == (drafter is not None)
    assert {one.id: tokens(engines, one) for one in asked} == expected
