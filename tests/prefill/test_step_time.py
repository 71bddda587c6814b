"""The estimate of prefill step times, learned from steps."""

import pytest

from prefill.step_time import StepTimeEstimator

BASE, TOKEN = 0.010, 0.001


def taken(*steps: int) -> StepTimeEstimator:
    """The estimator after steps of so many tokens, each of which took 10 ms and 1 ms for every token."""
    estimator = StepTimeEstimator(chunk_tokens=100)
    for tokens in steps:
        estimator.observe(tokens, BASE + TOKEN * tokens)
    return estimator


def test_two_lengths_determine_the_line() -> None:
    estimator = taken(1, 100)

    assert estimator.seconds(1) == pytest.approx(0.011)
    assert estimator.seconds(40) == pytest.approx(0.050)
    assert estimator.tokens_per_second == pytest.approx(100 / 0.110)


def test_many_steps_of_one_length_do_not_forget_the_other() -> None:
    assert taken(1, 100, *[100] * 1000).seconds(40) == pytest.approx(0.050)
    assert taken(1, 100, *[7] * 1000).tokens_per_second == pytest.approx(100 / 0.110)


def test_the_estimate_follows_a_machine_that_has_become_slower() -> None:
    estimator = taken(1, 100)
    for _ in range(50):
        estimator.observe(100, 0.220)

    assert estimator.tokens_per_second == pytest.approx(100 / 0.220, rel=0.01)


def test_a_single_length_is_taken_as_the_minimum_and_scaled_up() -> None:
    assert taken(50).seconds(100) == pytest.approx(2 * 0.060)
    assert taken(50).seconds(1) == pytest.approx(0.060)


def test_without_steps_there_is_no_estimate() -> None:
    assert (StepTimeEstimator(100).seconds(10), StepTimeEstimator(100).tokens_per_second) == (0.0, 0.0)
