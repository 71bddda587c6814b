"""Tests the statistics of speculation in each request's last chunk and in the replica's statistics."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from engine.clock import ManualClock
from engine.stats import Acceptance
from engine.types import Request, Sampling
from local import Pair
from tests.drafters import KnowingBuilder, save_random_drafter
from tests.local.rig import MIB, request
from tests.local.test_speculation import pair_config, with_other_prefill

BLOCK = 5


@pytest.fixture(scope="module")
def drafter(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_drafter(qwen3, tmp_path_factory.mktemp("drafter"))


def answer(path: Path, one: Request) -> list[int]:
    """Return the tokens of the target without speculation."""
    return Pair(pair_config(path, None)).generate([one])[one.id]


def knowing(path: Path, requests: list[Request], error_every: int, clock: ManualClock | None = None) -> Pair:
    """A pair whose drafter knows the answers, but for an error in every so many tokens."""
    plain = Pair(pair_config(path, None)).generate(requests)
    config = pair_config(path, None, {"fixed_drafts": BLOCK})
    answers = [[*one.prompt, *plain[one.id]] for one in requests]
    return Pair(config, clock, KnowingBuilder(config, answers, error_every))


def account(pair: Pair, name: str) -> Acceptance:
    """Return the acceptance of the last chunk, and check that no other chunk has one."""
    *others, last = pair.chunks[name]
    assert all(chunk.acceptance is None for chunk in others)
    assert last.acceptance is not None
    return last.acceptance


def replayed(position: int, max_tokens: int, error_every: int) -> Acceptance:
    """The steps after the first token: each says its drafts up to the first planted error, and one more."""
    found, left = Acceptance(), max_tokens - 1
    while left > 0:
        drafts = min(BLOCK, left - 1)
        good = next((i for i in range(drafts) if (position + i) % error_every == 0), drafts)
        found.count(drafts, drafts, good)  # no draft is made beyond the end of an answer
        position, left = position + good + 1, left - good - 1
    return found


def test_drafts_are_counted_by_position() -> None:
    found = Acceptance()
    for verified, accepted in ((3, 2), (0, 0), (1, 0), (4, 4)):
        found.count(5, verified, accepted)

    assert found == Acceptance(20, 8, 6, [3, 2, 2, 1], [2, 2, 1, 1], steps=4)


@pytest.mark.parametrize("error_every", [1, 3, 7, 1000])
def test_a_request_reports_its_steps_and_the_accepted_drafts_by_position(qwen3: Path, error_every: int) -> None:
    one = request("r", tokens=70, max_tokens=60)
    pair = knowing(qwen3, [one], error_every)

    pair.generate([one])

    found, stats = account(pair, "r"), pair.decoder.stats()
    assert found == replayed(71, 60, error_every)
    assert found.steps + found.accepted == 59
    assert sum(found.accepted_at) == found.accepted
    told = {name: value for name, value in asdict(found).items() if name != "synthetic"}
    assert {name: getattr(stats.counters, name) for name in told} == told


def test_drafts_after_a_stop_token_count_as_verified_and_not_accepted(qwen3: Path) -> None:
    free = request("free", tokens=70, max_tokens=60)
    said = answer(qwen3, free)
    at = next(i for i in range(7, 60) if (i - 1) % (BLOCK + 1) == 2 and said.index(said[i]) == i)
    one = replace(free, id="r", stop=replace(free.stop, stop_token_ids=(said[at],)))
    pair = knowing(qwen3, [free], 1000)

    pair.generate([one])

    found = account(pair, "r")
    assert found.steps + found.accepted == at
    assert found.verified == BLOCK * found.steps
    assert found.accepted == sum(found.accepted_at) == found.verified - 3
    assert pair.decoder.stats().counters.accepted == found.accepted


def test_each_request_has_its_own_counts(qwen3: Path) -> None:
    """One request has a full block, one few drafts, one none, and one none because of its length."""
    limits = {"free": 2**31, "two": 2, "off": 0}
    one = request("one", tokens=40, max_tokens=31)
    requests = [replace(one, id=name, max_drafts=most) for name, most in limits.items()]
    pair = knowing(qwen3, requests, 1000)

    pair.generate([*requests, request("short", max_tokens=1)])

    found = {name: account(pair, name) for name in limits}
    assert [one.steps for one in found.values()] == [5, 10, 30]
    assert [len(one.verified_at) for one in found.values()] == [5, 2, 0]
    assert account(pair, "short") == Acceptance()
    stats = pair.decoder.stats()
    for name in ("drafted", "verified", "accepted"):
        assert getattr(stats.counters, name) == sum(getattr(one, name) for one in found.values())
    assert stats.counters.verified_at[0] == found["free"].verified_at[0] + found["two"].verified_at[0]


def test_without_a_drafter_every_token_is_a_step(qwen3: Path) -> None:
    pair = Pair(pair_config(qwen3, None))

    pair.generate([request("r", max_tokens=9)])

    assert account(pair, "r") == Acceptance(steps=8)


def test_only_the_last_attempt_counts(qwen3: Path) -> None:
    one = request("r", tokens=70, max_tokens=60)
    pair = knowing(qwen3, [one], 1000)

    pair.generate([one.resumed(tuple(answer(qwen3, one)[:40]))])

    found = account(pair, "r")
    assert found.steps + found.accepted == 19


def test_step_seconds_are_split_into_drafting_planning_and_verifying(qwen3: Path) -> None:
    clock = ManualClock()
    one = request("r", tokens=70, max_tokens=20)
    pair = knowing(qwen3, [one], 7, clock)
    decoder: Any = pair.decoder

    def slow(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowly(*args: Any) -> Any:
            clock.advance(seconds)
            return call(*args)

        return slowly

    decoder._runner.drafter.propose = slow(decoder._runner.drafter.propose, 0.5)
    decoder._planner.plan = slow(decoder._planner.plan, 0.25)
    decoder._runner.backend.forward = slow(decoder._runner.backend.forward, 2.0)
    decoder._runner.drafter.absorb = slow(decoder._runner.drafter.absorb, 1.0)
    pair.generate([one])

    stats = pair.decoder.stats()
    times = (stats.counters.draft_seconds, stats.counters.plan_seconds, stats.counters.verify_seconds)
    assert times == (0.5 * stats.counters.steps, 0.25 * stats.counters.steps, 3.0 * stats.counters.steps)
    timings = pair.chunks["r"][-1].timings
    assert timings is not None and timings.decode_seconds == 3.75 * stats.counters.steps


def test_compute_seconds_are_apart_from_the_engines_own_time(qwen3: Path) -> None:
    one = request("r", tokens=70, max_tokens=6)
    pair = knowing(qwen3, [one], 7)
    decoder, prefiller = cast(Any, pair.decoder), cast(Any, pair.prefiller)

    def slow(call: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any) -> Any:
            time.sleep(0.02)
            return call(*args)

        return slowly

    decoder._runner.backend.forward = slow(decoder._runner.backend.forward)
    prefiller._backend.forward = slow(prefiller._backend.forward)
    decoder._schedule.commit = slow(decoder._schedule.commit)
    pair.generate([one])

    decode, prefill = pair.decoder.stats(), pair.prefiller.stats()
    assert decode.counters.compute_seconds >= 0.02 * decode.counters.steps > 0
    assert decode.counters.step_seconds - decode.counters.compute_seconds >= 0.02 * decode.counters.steps
    assert prefill.counters.step_seconds > prefill.counters.compute_seconds >= 0.02 * prefill.counters.steps > 0
    assert decode.peak_bytes >= prefill.peak_bytes > 100 * MIB, "of the process"


def test_statistics_are_a_snapshot(qwen3: Path) -> None:
    one = request("r", tokens=70, max_tokens=60)
    pair = knowing(qwen3, [one], 1000)
    pair.generate([one])
    before = pair.decoder.stats()
    told = asdict(before)

    pair.generate([replace(one, id="again")])

    assert asdict(before) == told != asdict(pair.decoder.stats())


@pytest.mark.parametrize("other", ["none", "another"])
def test_handoffs_without_the_drafters_context_are_served_counted_and_logged_once(
    qwen3: Path, drafter: Path, tmp_path: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = None if other == "none" else save_random_drafter(qwen3, tmp_path, seed=1)
    requests = [request(f"r{i}", tokens=n, max_tokens=20) for i, n in enumerate((3, 64, 130))]
    plain = Pair(pair_config(qwen3, None)).generate(requests)
    pair = with_other_prefill(pair_config(qwen3, drafter, {"fixed_drafts": 3}), pair_config(qwen3, theirs))

    with caplog.at_level(logging.WARNING, "sparkpool"):
        assert pair.generate(requests) == plain

    stats = pair.decoder.stats()
    assert (stats.counters.handoffs_without_context, stats.counters.requests) == (3, 3)
    assert stats.counters.drafted > 0
    (message,) = [record.message for record in caplog.records]
    assert ("has no drafter" if other == "none" else "has another drafter") in message
    assert "drafts over what is decoded here alone" in message


def test_handoffs_with_the_context_or_without_a_drafter_are_not_counted(qwen3: Path, drafter: Path) -> None:
    both = Pair(pair_config(qwen3, drafter))
    only_prefill = with_other_prefill(pair_config(qwen3, None), pair_config(qwen3, drafter))

    for pair in (both, only_prefill):
        pair.generate([request("r")])
        assert pair.decoder.stats().counters.handoffs_without_context == 0


RATES = (1.0, 0.5, 0.0)


def test_synthetic_acceptance_has_its_rates_and_says_so(qwen3: Path, drafter: Path) -> None:
    config = pair_config(qwen3, drafter, {"fixed_drafts": BLOCK, "synthetic_acceptance": RATES})
    requests = [
        replace(request(f"r{i}", tokens=5 + i, max_tokens=80), sampling=Sampling(temperature=1.0, seed=i))
        for i in range(8)
    ]
    pair, again = Pair(config), Pair(config)

    assert pair.generate(requests) == again.generate(requests)

    stats = pair.decoder.stats()
    assert stats.identity.synthetic
    assert all(account(pair, one.id).synthetic for one in requests)
    verified, accepted = stats.counters.verified_at, stats.counters.accepted_at
    assert accepted[0] == verified[0]
    assert 0.4 < accepted[1] / verified[1] < 0.6
    assert accepted[2:] == [0] * 3
    assert len({pair.chunks[one.id][-1].acceptance.accepted for one in requests}) > 1, "seeds differ"


def test_exact_acceptance_is_not_reported_as_synthetic(qwen3: Path, drafter: Path) -> None:
    pair = Pair(pair_config(qwen3, drafter))

    pair.generate([request("r")])

    assert not pair.decoder.stats().identity.synthetic
    assert not pair.prefiller.stats().identity.synthetic
    assert not account(pair, "r").synthetic


def test_step_overhead_is_the_time_between_steps_while_requests_wait(qwen3: Path) -> None:
    clock = ManualClock(100.0)
    pair = knowing(
        qwen3, [request("r", tokens=20, max_tokens=40), request("later", tokens=20, max_tokens=40)], 1, clock
    )
    decoder: Any = pair.decoder

    def answer_in_steps_of(seconds: float, name: str) -> None:
        pair.add(request(name, tokens=20, max_tokens=40))
        while not pair.idle:
            pair.step()
            clock.advance(seconds)

    answer_in_steps_of(0.5, "r")
    assert decoder._timer.overhead_seconds == pytest.approx(0.5, rel=0.05)
    clock.advance(1000.0)
    answer_in_steps_of(0.5, "later")
    assert decoder._timer.overhead_seconds == pytest.approx(0.5, rel=0.05)
