"""Mixes against the numbers that they claim, and arrivals against their distribution."""

import math
from itertools import islice, pairwise
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.simulator.mixes import MIXES, Chat, CodingAgent, FixedSize, Lognormal, arrival_times, generate, mix_named
from compare.simulator.workload import Arrival, PromptSegment, tokens_of
from engine.errors import ConfigError
from tests.compare.prompts import common


@pytest.mark.parametrize("name", MIXES)
def test_a_seed_is_a_workload_and_a_shorter_one_begins_a_longer_one(name: str) -> None:
    longer = generate(MIXES[name], rate=3, seed=5, requests=300)

    assert generate(MIXES[name], rate=3, seed=5, requests=300) == longer
    assert generate(MIXES[name], rate=3, seed=5, requests=40) == longer.first(40)
    assert generate(MIXES[name], rate=3, seed=5, seconds=longer.seconds) == longer
    assert generate(MIXES[name], rate=3, seed=6, requests=300) != longer


@pytest.mark.parametrize("name", MIXES)
def test_every_prompt_of_a_mix_is_in_order_and_holds_what_it_shares(name: str) -> None:
    workload = generate(MIXES[name], rate=3, seed=5, requests=500, tier="gold")

    assert {arrival.tier for arrival in workload} == {"gold"}
    assert {arrival.domain for arrival in workload} == {MIXES[name].domain}
    assert all(a.at < b.at for a, b in pairwise(workload))
    for arrival in workload:
        assert arrival.input_tokens >= 1 and arrival.output_tokens >= 1
        assert arrival.shared_tokens in (0, arrival.input_tokens)
        assert all(segment.tokens >= 1 for segment in arrival.shared)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_arrivals_come_at_their_rate_and_as_unevenly_as_asked(burstiness: float, seed: int) -> None:
    rate, count = 8.0, 20_000
    times = list(islice(arrival_times(rate, seed, burstiness), count))
    gaps = [b - a for a, b in pairwise([0.0, *times])]

    mean = sum(gaps) / count
    squares = sum((gap - mean) ** 2 for gap in gaps) / count

    # A gamma's variance is mean**2 / shape; that of its sample variance follows from a kurtosis of 3 + 6 / shape.
    variance = 1 / (rate**2 * burstiness)
    assert abs(mean - 1 / rate) < 4 * math.sqrt(variance / count)
    assert abs(squares - variance) < 4 * variance * math.sqrt((2 + 6 / burstiness) / count)


def test_poisson_gaps_are_exponential() -> None:
    """The part of them above t is exp(-rate t)."""
    gaps = [b - a for a, b in pairwise(islice(arrival_times(2.0, 1), 10_001))]

    for t in (0.1, 0.5, 1.0, 2.0):
        expected = math.exp(-2 * t)
        found = sum(gap > t for gap in gaps) / len(gaps)
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / len(gaps))


def test_all_that_arrive_within_the_seconds_are_there() -> None:
    expected = [t for t in islice(arrival_times(5.0, 3, 0.5), 1000) if t <= 60]

    workload = generate(FixedSize(10, 2), rate=5, seed=3, seconds=60, burstiness=0.5)

    assert [arrival.at for arrival in workload] == expected
    assert {(a.input_tokens, a.output_tokens, a.shared) for a in workload} == {(10, 2, ())}


def test_a_chat_goes_on_from_what_was_said() -> None:
    workload = generate(Chat(mean_turns=6), rate=2, seed=2, requests=2000)
    sessions: dict[str, list[Arrival]] = {}
    for arrival in workload:
        sessions.setdefault(arrival.shared[0].name, []).append(arrival)

    for turns in sessions.values():
        for before, after in pairwise(turns):
            assert after.input_tokens > before.input_tokens + before.output_tokens
    one, two = next(turns[:2] for turns in sessions.values() if len(turns) > 1)
    assert common(tokens_of(one, 0), tokens_of(two, 1)) == one.input_tokens
    other = next(arrival for arrival in workload if arrival.shared[0].name != one.shared[0].name)
    assert not set(tokens_of(one, 0)) & set(tokens_of(other, 2))


def test_a_turn_does_not_come_before_its_pause() -> None:
    mix = Chat(mean_turns=6, pause=Lognormal(median=20, spread=0.0, min_value=20))
    last: dict[str, float] = {}
    for arrival in generate(mix, rate=2, seed=2, requests=2000):
        name = arrival.shared[0].name
        assert arrival.at - last.get(name, -math.inf) >= 20
        last[name] = arrival.at

    assert len(last) < 1000, "most are turns of a session that was there"


def test_sessions_have_the_turns_that_they_should() -> None:
    """As many new ones as end: no more open at the end than at the beginning, give or take the luck of the draw."""
    workload = generate(Chat(mean_turns=5), rate=1, seed=4, requests=20_000)
    names = {arrival.shared[0].name for arrival in workload}

    assert len(workload) / len(names) == pytest.approx(5, rel=0.1)


def test_chat_is_about_as_long_as_azure_says() -> None:
    workload = generate(Chat(), rate=5, seed=1, requests=20_000)

    assert median(a.input_tokens for a in workload) == pytest.approx(1020, rel=0.05)
    assert workload.mean_input_tokens == pytest.approx(1155, rel=0.15)
    assert median(a.output_tokens for a in workload) == pytest.approx(129, rel=0.05)
    assert workload.mean_output_tokens == pytest.approx(211, rel=0.1)


@pytest.mark.parametrize("requests", [2000, 20_000])
def test_coding_agents_are_as_long_and_as_known_as_published(requests: int) -> None:
    """From the start on: sessions are of all ages there."""
    workload = generate(CodingAgent(), rate=1, seed=1, requests=requests)

    assert median(a.input_tokens for a in workload) == pytest.approx(140_000, rel=0.1)
    assert workload.repeated == pytest.approx(0.99, abs=0.007)
    assert workload.mean_output_tokens == pytest.approx(523, rel=0.1)
    assert max(a.input_tokens for a in workload) <= CodingAgent().max_tokens


def test_an_agent_whose_context_is_full_begins_again() -> None:
    workload = generate(CodingAgent(max_tokens=1), rate=1, seed=1, requests=50)

    assert len({arrival.shared[2].name for arrival in workload}) == 50


def test_agents_share_their_instructions_and_repositories() -> None:
    workload = generate(CodingAgent(repositories=2), rate=1, seed=1, requests=400)
    by_repository: dict[PromptSegment, Arrival] = {}
    for arrival in workload:
        assert arrival.shared[0] == PromptSegment("agent", 17_000)
        by_repository.setdefault(arrival.shared[1], arrival)

    one, two = by_repository.values()
    assert common(tokens_of(one, 0), tokens_of(two, 1)) == 17_000


def test_a_million_is_nearly_that() -> None:
    workload = generate(MIXES["million"], rate=0.01, seed=1, requests=100)

    assert all(900_000 <= a.input_tokens <= 1_000_000 and not a.shared for a in workload)
    assert all(a.input_tokens + a.output_tokens <= 2**20 for a in workload)


@given(st.floats(1, 1e6), st.floats(0, 3), st.integers(0, 99))
def test_a_lognormal_keeps_within_its_bounds(middle: float, spread: float, seed: int) -> None:
    lengths = Lognormal(median=middle, spread=spread, max_value=2 * middle)

    assert 1 <= lengths.count(Random(seed)) <= round(2 * middle)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, "either a number of requests or of seconds"),
        ({"requests": 1, "seconds": 1.0}, "either"),
        ({"requests": 0}, "requests is 0"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"requests": 1, "rate": 0.0}, "rate is 0.0"),
        ({"requests": 1, "rate": math.nan}, "rate is nan"),
        ({"requests": 1, "burstiness": math.inf}, "burstiness is inf"),
        ({"seconds": 1e-9}, "nothing arrives in 1e-09 seconds"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(changes: dict[str, float], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        generate(FixedSize(10, 2), **{"rate": 1.0, "seed": 1, **changes})  # type: ignore[arg-type]


def test_a_mix_without_a_name_is_refused_with_those_that_have_one() -> None:
    assert mix_named("chat") is MIXES["chat"]
    with pytest.raises(ConfigError, match="talk: no such mix; there are chat, coding_agent"):
        mix_named("talk")
