"""A decode engine that prefills, seen from outside: what it refuses, counts, builds and gives back."""

from dataclasses import replace
from pathlib import Path

import pytest

from decode import Decoder
from engine.errors import DoesNotFit, Overloaded
from engine.local_transfer import LocalTransfer, LocalWire
from engine.models import LoadedModel
from engine.stats import PrefillQueue, ReplicaStats
from engine.text import Text
from engine.types import RequestEnded
from local import Builder, ColocatedEngine
from tests.local.conftest import MakeMixed, TakesTime
from tests.local.mixed import MixedRig
from tests.local.rig import config, request


@pytest.fixture
def rig(make_mixed: MakeMixed) -> MixedRig:
    return make_mixed(decode={"local_chunk_tokens": 32})


def test_a_full_queue_and_a_request_that_is_too_long_are_refused_by_name(make_mixed: MakeMixed) -> None:
    rig = make_mixed(decode={"max_waiting": 2, "cache_bytes": 1_200_000})
    with pytest.raises(DoesNotFit, match=r"max_tokens: 1000 tokens in all, .* \(decode\.cache_bytes\)"):
        rig.serve(request("r", tokens=100, max_tokens=900))
    for name in ("a", "b"):
        rig.serve(request(name))
    with pytest.raises(Overloaded, match=r"decode\.max_waiting: 2 prompts wait already"):
        rig.serve(request("c"))

    rig.serve(request("again", max_tokens=9).resumed((1, 2, 3)))
    rig.run()

    assert [len(rig.tokens(name)) for name in ("a", "b", "again")] == [5, 5, 6]
    assert rig.colocated.stats().counters.requests == 3


def test_everything_is_counted_once(rig: MixedRig, computing_takes_time: TakesTime) -> None:
    computing_takes_time(rig.clock)
    for name in ("a", "b", "c"):
        rig.serve(request(name, tokens=20, max_tokens=5))
    rig.add(request("handed", tokens=20, max_tokens=5))
    rig.serve(replace(request("late", tokens=20), seconds_left=-1.0))
    rig.until(lambda: rig.decoding("c"))
    rig.cancel("c")
    rig.run()

    stats, counters = rig.colocated.stats(), rig.colocated.stats().counters
    assert (counters.requests, counters.cancelled, counters.failed) == (5, 1, 1)
    assert (counters.local_prefills, counters.local_tokens, counters.prompt_tokens) == (3, 60, 80)
    assert stats.transfers.reads == 1
    assert counters.tokens == sum(len(rig.tokens(name)) for name in ("a", "b", "c", "handed"))
    assert (stats.waiting, stats.running, stats.leases.held) == (0, 0, 0)
    parts = (rig.colocated.prefiller.stats().counters, rig.colocated.decoder.stats().counters)
    assert counters.compute_seconds == sum(part.compute_seconds for part in parts)
    assert counters.compute_seconds == pytest.approx(counters.step_seconds)
    assert counters.step_seconds == pytest.approx(1e-3 * sum(part.steps for part in parts))


def test_a_warm_up_leaves_nothing_but_measured_step_times(rig: MixedRig, computing_takes_time: TakesTime) -> None:
    computing_takes_time(rig.clock)

    def counted() -> ReplicaStats:
        return replace(rig.colocated.stats(), peak_bytes=0, prefill_queue=PrefillQueue())

    before = counted()

    rig.colocated.warm_up()

    assert counted() == before
    assert rig.colocated.stats().prefill_queue.tokens_per_second > 0
    rig.assert_consistent()


def test_a_warm_up_ends_before_a_chunk_fills_all_pages(make_mixed: MakeMixed) -> None:
    rig = make_mixed(decode={"local_chunk_tokens": 10_000, "cache_bytes": 400_000})

    rig.colocated.warm_up()

    rig.assert_consistent()


@pytest.mark.parametrize(("chunk_tokens", "kind"), [(0, Decoder), (16, ColocatedEngine)])
def test_a_decode_pool_with_local_chunk_tokens_prefills(
    qwen3_sliding: Path, sliding_model: LoadedModel, chunk_tokens: int, kind: type
) -> None:
    settings = config(qwen3_sliding, decode={"local_chunk_tokens": chunk_tokens})
    builder, wire = Builder(settings, settings.decode["default"], sliding_model), LocalWire()

    engine = builder.decode_engine(
        "d", lambda name, store: LocalTransfer(name, store, wire), Text.load(qwen3_sliding), "default"
    )

    assert type(engine) is kind


def test_a_preempted_request_returns_to_the_gateway(make_mixed: MakeMixed) -> None:
    rig = make_mixed(decode={"cache_bytes": 1_200_000, "local_chunk_tokens": 32})
    growing = [request(f"r{i}", tokens=30 + i, max_tokens=150) for i in range(6)]

    answers = rig.generate(growing)

    assert any(isinstance(event, RequestEnded) for event in rig.events)
    assert rig.colocated.stats().counters.preempted > 0
    assert answers == make_mixed().generate(growing)
