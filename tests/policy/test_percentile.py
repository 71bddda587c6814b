"""Percentiles against the standard library and numpy, and what a sliding window forgets."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cluster.loadgen.report
import compare.simulator.outcome
import compare.study.measured
import policy.percentile
from policy.percentile import SlidingWindow, percentile


def test_all_users_share_one_definition() -> None:
    for user in (cluster.loadgen.report, compare.study.measured, compare.simulator.outcome):
        assert user.percentile is policy.percentile.percentile


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")

    for percent in (1, 50, 95, 99):
        assert percentile(values, percent) == pytest.approx(cuts[percent - 1], abs=1e-6)


def test_one_value_is_all_its_percentiles() -> None:
    assert percentile([3.0], 99) == 3.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy_to_the_last_bit(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == np.percentile(values, percent)


def test_a_sliding_window_has_percentiles_of_its_values_until_they_are_old() -> None:
    now = 0.0
    window = SlidingWindow(10.0, lambda: now)
    assert window.percentile(50) is None
    for value in range(1, 101):
        window.add(float(value))
    assert [window.percentile(p) for p in (0, 50, 95, 100)] == [1.0, 50.5, pytest.approx(95.05), 100.0]
    now = 9.0
    window.add(7.0)
    now = 11.0
    assert window.percentile(5) == 7.0
    now = 19.1
    assert window.percentile(5) is None
