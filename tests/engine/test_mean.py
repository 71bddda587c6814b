import pytest

from engine.mean import ExponentialMean


def test_the_first_sample_counts_fully_and_later_ones_by_their_weight() -> None:
    mean = ExponentialMean(0.25)
    assert mean.or_else(7.0) == 7.0

    for sample, expected in ((4.0, 4.0), (8.0, 5.0), (5.0, 5.0), (1.0, 4.0)):
        mean.observe(sample)
        assert mean.value == mean.or_else(7.0) == pytest.approx(expected)


def test_an_initial_value_counts_as_a_sample() -> None:
    mean = ExponentialMean(0.1, 0.0)

    mean.observe(1.0)

    assert mean.value == pytest.approx(0.1)
