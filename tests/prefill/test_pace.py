"""The pace of prefill, learned from steps."""

import pytest

from prefill.pace import Pace

BASE, TOKEN = 0.010, 0.001


def taken(*steps: int) -> Pace:
    """The pace after steps of so many tokens, each of which took 10 ms and 1 ms for every token."""
    pace = Pace(chunk_tokens=100)
    for tokens in steps:
        pace.observe(tokens, BASE + TOKEN * tokens)
    return pace


def test_two_lengths_give_the_line() -> None:
    pace = taken(1, 100)

    assert pace.seconds(1) == pytest.approx(0.011)
    assert pace.seconds(40) == pytest.approx(0.050)
    assert pace.tokens_per_second == pytest.approx(100 / 0.110)


def test_many_steps_of_one_length_do_not_lose_the_other() -> None:
    assert taken(1, 100, *[100] * 1000).seconds(40) == pytest.approx(0.050)
    assert taken(1, 100, *[7] * 1000).tokens_per_second == pytest.approx(100 / 0.110)


def test_it_follows_a_machine_that_has_become_slower() -> None:
    pace = taken(1, 100)
    for _ in range(50):
        pace.observe(100, 0.220)

    assert pace.tokens_per_second == pytest.approx(100 / 0.220, rel=0.01)


def test_one_length_alone_is_taken_for_the_least_and_scaled_up() -> None:
    assert taken(50).seconds(100) == pytest.approx(2 * 0.060)
    assert taken(50).seconds(1) == pytest.approx(0.060)


def test_nothing_seen_is_nothing_said() -> None:
    assert (Pace(100).seconds(10), Pace(100).tokens_per_second) == (0.0, 0.0)
