"""Tests a decode engine that prefills some requests itself: its tokens, its statistics and its pages."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from engine.errors import DeadlineExceeded, ModelFailure
from engine.text import Text
from engine.types import Chunk, Handoff, Request, Sampling, StopRules
from tests.drafters import save_random_drafter
from tests.local.conftest import MakeMixed
from tests.local.mixed import MixedPair, MixedRig
from tests.local.rig import poison, prompt, request
from tests.local.test_speculation import LENGTHS, SEEDED, asked, pair, pair_config
from tests.oracle import Oracle, assert_same

POISON = 299


@pytest.fixture
def rig(make_mixed: MakeMixed) -> MixedRig:
    return make_mixed(decode={"local_chunk_tokens": 32})


@pytest.fixture(scope="module", params=["qwen3", "deepseek_v3", "qwen3_sliding"])
def target(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module", params=["none", "dspark", "mtp"])
def drafter(
    request: pytest.FixtureRequest, target: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path | str | None:
    if request.param == "mtp" and "qwen3" in target.name:
        pytest.skip("Qwen3 checkpoints have no next-token layer")
    made = {"none": None, "mtp": "mtp"}
    return made[request.param] if request.param in made else save_random_drafter(target, tmp_path_factory.mktemp("d"))


@pytest.mark.parametrize("served", [True, False], ids=["all", "every second one"])
@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
def test_tokens_are_those_of_both_pools(
    target: Path, drafter: Path | str | None, sampling: Sampling, served: bool
) -> None:
    expected = pair(target, None).generate(asked(sampling))
    mixed = MixedPair(pair_config(target, drafter, {"fixed_drafts": 4, "local_chunk_tokens": 48}))

    assert mixed.generate(asked(sampling), served) == expected

    stats = mixed.colocated.stats()
    assert stats.counters.local_prefills == (len(LENGTHS) if served else len(LENGTHS) // 2)
    assert stats.counters.local_tokens == sum(LENGTHS if served else LENGTHS[::2])
    assert (stats.counters.drafted > 0) == (drafter is not None)


def test_tokens_are_those_of_the_oracle(target: Path) -> None:
    answers = MixedPair(pair_config(target, None, {"local_chunk_tokens": 48})).generate(asked(Sampling()))

    oracle = Oracle(target)
    for one in asked(Sampling()):
        assert assert_same(answers[one.id], *oracle.greedy(one.prompt, one.stop.max_tokens, eos=False)) == 0


@pytest.mark.parametrize("drafter", [SHIPPED_DRAFTER, "mtp"], ids=["dspark", "mtp"])
def test_drafts_are_as_good_as_after_a_handoff(drafter: Path | str) -> None:
    """The same tokens are accepted in every step: the drafter has its context, also of cached prefixes."""
    text = Text.load(SHIPPED_MODEL).encode(inspect.getsource(json.decoder))
    stop = StopRules(max_tokens=40, ignore_eos=True)
    requests = [
        Request(id=f"r{n}", prompt=tuple(text[:n]), sampling=Sampling(), stop=stop) for n in (150, 192, 65, 1, 256)
    ]
    settings = pair_config(SHIPPED_MODEL, drafter, {"fixed_drafts": 4, "local_chunk_tokens": 48})
    handed, mixed = pair(SHIPPED_MODEL, drafter, {"fixed_drafts": 4}), MixedPair(settings)
    for one in requests:
        handed.generate([one])
        mixed.generate([one])

    for one in requests:
        steps = [[len(chunk.tokens) for chunk in engines.chunks[one.id]] for engines in (handed, mixed)]
        assert steps[0] == steps[1]
    assert mixed.colocated.stats().counters.prefix_hit_tokens >= 64 + 128
    assert mixed.colocated.stats().counters.accepted > 40, "hardly anything was accepted"


def test_the_first_event_is_the_handoff_that_the_prefill_pool_would_give(rig: MixedRig) -> None:
    one = replace(request("r", tokens=100), prompt_logprobs=True)
    rig.add(replace(one, id="handed"))
    rig.run()
    rig.events.clear()
    rig.serve(one)
    rig.until(lambda: "r" in rig.handoffs)
    assert len(rig.tokens("r")) == 1, "the first token does not wait for a decode step"
    rig.run()

    kinds = [type(event) for event in rig.events]
    assert kinds == [Handoff] + [Chunk] * 5
    local = rig.handoffs["r"]
    assert local.prompt_logprobs == pytest.approx(rig.handoffs["handed"].prompt_logprobs, abs=1e-4)
    assert len(local.prompt_logprobs) == 99
    assert local.first.token == rig.handoffs["handed"].first.token
    last = rig.chunks["r"][-1]
    assert last.timings is not None
    assert (last.timings.wait_seconds, last.timings.transfer_seconds) == (0.0, 0.0)
    assert (last.timings.moved_bytes, last.timings.moved_pages) == (0, 0)
    assert last.timings.decode_seconds == pytest.approx(0.004)
    assert last.acceptance is not None and last.acceptance.steps == 4
    assert local.timings.prefill_seconds == pytest.approx(0.003), "four chunks, and a poll between two of them"


def test_its_pages_pass_to_decode_without_a_copy(rig: MixedRig) -> None:
    rig.serve(request("r", tokens=100))
    rig.until(lambda: rig.decoding("r"))

    sequence = rig.colocated.decoder._schedule.running["r"]
    assert sequence.tables is not None
    for name, span in rig.handoffs["r"].spans.items():
        table = sequence.tables.groups[name]
        assert (table.first_page, *table.page_ids[: len(span.page_ids)]) == (span.first_page, *span.page_ids)
        assert rig.colocated.stats().pages[name].held == len(table.page_ids), "a copy of them is held, too"
    assert rig.colocated.stats().transfers.moved_pages == rig.colocated.stats().transfers.reads == 0
    rig.run()


@pytest.mark.parametrize("drafter", [False, True], ids=["no drafter", "drafter"])
@pytest.mark.parametrize("first", ["handed over", "served"])
def test_a_prefix_is_found_by_either_path(qwen3: Path, tmp_path: Path, first: str, drafter: bool) -> None:
    source = save_random_drafter(qwen3, tmp_path) if drafter else None
    mixed = MixedPair(pair_config(qwen3, source))
    same = [replace(request(name), prompt=prompt("same", 150) + prompt(name, 20)) for name in ("a", "b")]
    begin, then = (mixed.add, mixed.serve) if first == "handed over" else (mixed.serve, mixed.add)
    begin(same[0])
    mixed.run()
    before = mixed.colocated.stats()

    then(same[1])
    mixed.run()

    after = mixed.colocated.stats()
    assert after.counters.prefix_hit_tokens - before.counters.prefix_hit_tokens == 128
    if first == "handed over":
        assert mixed.handoffs["b"].cached_tokens == 128
        assert after.counters.local_tokens - before.counters.local_tokens == 170 - 128
    else:
        assert after.transfers.moved_pages - before.transfers.moved_pages == 1


@pytest.mark.parametrize("max_tokens", [1, 9])
def test_a_request_may_end_with_its_first_token(rig: MixedRig, max_tokens: int) -> None:
    one = request("r", tokens=70, max_tokens=max_tokens)
    if max_tokens > 1:
        (first, *_) = rig.generate([replace(one, id="before")])["before"]
        one = replace(one, stop=replace(one.stop, stop_token_ids=(first,)))
    rig.serve(one)
    rig.run()

    (chunk,) = rig.chunks["r"]
    assert chunk.finish == ("length" if max_tokens == 1 else "stop")
    assert chunk.timings is not None and chunk.acceptance is not None
    assert rig.colocated.stats().running == 0


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding", "done"])
def test_a_request_can_be_cancelled_in_every_state(make_mixed: MakeMixed, state: str) -> None:
    rig = make_mixed(decode={"local_chunk_tokens": 32, "max_requests": 1})
    if state == "waiting":
        rig.serve(request("first", tokens=40, max_tokens=20))
        rig.until(lambda: rig.decoding("first"))
    rig.serve(request("r", tokens=100, max_tokens=20))
    where = {"waiting": rig.waiting, "prefilling": rig.prefilling, "decoding": rig.decoding}
    rig.step()
    rig.until(lambda: where[state]("r") if state in where else rig.finish("r") is not None)
    heard = len(rig.chunks["r"])

    rig.cancel("r")
    rig.cancel("r")

    rig.assert_consistent()
    assert rig.colocated.stats().counters.cancelled == (state != "done")
    rig.run()
    assert len(rig.chunks["r"]) == heard
    rig.colocated._pages.assert_idle()
    assert len(rig.tokens("first")) == (20 if state == "waiting" else 0)


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding"])
def test_a_deadline_counts_from_the_arrival(make_mixed: MakeMixed, state: str) -> None:
    rig = make_mixed(decode={"local_chunk_tokens": 32, "max_requests": 1})
    if state == "waiting":
        rig.serve(request("first", tokens=40, max_tokens=500))
        rig.until(lambda: rig.decoding("first"))
    came = rig.clock.now()
    rig.serve(replace(request("r", tokens=100, max_tokens=900), seconds_left=10.0))
    if state == "decoding":
        rig.clock.advance(4.0)
        rig.until(lambda: rig.decoding("r"))
        assert rig.colocated.decoder._schedule.running["r"].deadline == pytest.approx(came + 10.0)
        assert rig.colocated.decoder._schedule.running["r"].precedence == pytest.approx((0, came))
    rig.step()
    assert not rig.errors

    rig.clock.advance(came + 10.0 - rig.clock.now() + 1e-3)
    rig.step()

    assert isinstance(rig.errors["r"], DeadlineExceeded)
    assert rig.colocated.stats().counters.failed == 1
    rig.cancel("first")
    rig.run()


@pytest.fixture
def poisoned(rig: MixedRig) -> Iterator[MixedRig]:
    """The model gives NaN from the token POISON on."""
    with poison(rig.builder.model.module, POISON):
        yield rig


@pytest.mark.parametrize("place", ["prompt", "generated"])
def test_a_request_with_nan_ends_alone(poisoned: MixedRig, place: str) -> None:
    healthy = [request(f"healthy {i}", tokens=20 + i, max_tokens=12) for i in range(3)]
    alone = poisoned.generate(healthy)
    sick = request("sick", tokens=80, max_tokens=20)
    if place == "prompt":
        sick = replace(sick, prompt=(*sick.prompt[:-1], POISON))
    else:
        sick = replace(sick, sampling=replace(sick.sampling, logit_bias=((POISON, 100.0),)))

    for one in (*healthy[:2], sick, healthy[2]):
        poisoned.serve(replace(one, id=one.id + "!"))
    poisoned.run()

    assert isinstance(poisoned.errors["sick!"], ModelFailure)
    assert {one.id: poisoned.tokens(one.id + "!") for one in healthy} == alone
    for records in poisoned.colocated._pages.store.records.values():
        assert records[1:].view(torch.float32).isfinite().all(), "NaN stays in a page"


def test_a_prefill_chunk_runs_between_two_decode_steps(rig: MixedRig) -> None:
    """Every step gives every running request a token, however long a new prompt is."""
    rig.serve(request("runs", tokens=20, max_tokens=60))
    rig.until(lambda: rig.decoding("runs"))
    rig.serve(request("long", tokens=32 * 9 + 1))
    before, tokens = rig.colocated.stats(), len(rig.tokens("runs"))
    rig.until(lambda: rig.decoding("long"))

    after = rig.colocated.stats()
    assert after.counters.local_tokens - before.counters.local_tokens == 32 * 9 + 1
    assert after.counters.steps - before.counters.steps == len(rig.tokens("runs")) - tokens == 10
    rig.run()
