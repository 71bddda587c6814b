"""Tests the rates that a replica forecasts for its requests, against the formula and against its steps."""

import pytest

from decode.batch import StepLoad
from decode.objective import StepSeconds
from decode.plan import FixedPlanner
from decode.rate_forecast import RateForecast
from engine.facts import Survival, expected_rate
from engine.steptime import Curve, ProfiledTimes
from tests.decode.steps import step_result

DRAFT, BASE, TOKEN = 0.5, 1.0, 0.1


def times() -> ProfiledTimes:
    """Drafting takes 0.5 s, a step 1 s and 0.1 s for each verified token."""
    counts = (1, 100)
    verify = {r: Curve(counts, tuple(BASE + TOKEN * n for n in counts)) for r in (1, 16)}
    return ProfiledTimes({}, 0, Curve((1, 16), (DRAFT, DRAFT)), verify)


def test_the_expected_rate_is_tokens_over_step_seconds() -> None:
    survival = Survival([0.9, 0.5, 0.1])

    by_count = [expected_rate(times(), survival, 2, 0, drafts=n) for n in range(4)]

    assert by_count[0].rate == pytest.approx(1 / (BASE + 2 * TOKEN))
    assert by_count[1].rate == pytest.approx(1.9 / (DRAFT + BASE + 4 * TOKEN))
    assert by_count[2].rate == pytest.approx(2.4 / (DRAFT + BASE + 6 * TOKEN))
    best = expected_rate(times(), survival, 2, 0)
    assert best == max(by_count, key=lambda found: found.rate)
    assert best.drafts == 2
    assert best.marginal_rate == pytest.approx(by_count[3].rate - by_count[2].rate) and best.marginal_rate < 0
    assert expected_rate(times(), survival, 2, 0, overhead_seconds=1.0, drafts=0).rate == pytest.approx(1 / 2.2)


def test_no_drafts_are_expected_where_they_cost_more_than_they_give() -> None:
    assert expected_rate(times(), Survival([0.1, 0.01]), 1, 0).drafts == 0
    assert expected_rate(times(), Survival(), 1, 0).marginal_rate == 0.0


def test_rates_follow_the_acceptance_of_drafts_and_the_step_times() -> None:
    planner = FixedPlanner(2, StepSeconds(times(), 4))
    forecast = RateForecast(planner, max_requests=6)
    assert sorted(forecast.rates()) == [1, 2, 4, 6]
    assert forecast.rates()[1] == pytest.approx(1 / (BASE + TOKEN)), "no draft has been seen yet"

    load = StepLoad(["a", "b"], [2, 2], 100)
    as_the_table_says = DRAFT + BASE + 6 * TOKEN
    for _ in range(100):  # of two drafts of each, all first ones are accepted and half of the second ones
        result = step_result(load, [2, 2], [2, 1], 2 * as_the_table_says)
        planner.observe(result)
        forecast.observe(result)

    assert list(planner.survival.at) == pytest.approx([1.0, 0.5], abs=1e-3)
    assert forecast.accepted_length == pytest.approx(2.5)
    assert forecast.budget == pytest.approx(4)
    assert forecast.rates()[2] == pytest.approx(2.5 / (2 * as_the_table_says), rel=1e-3)
    assert forecast.rates()[6] < forecast.rates()[2]


def test_there_is_no_forecast_without_measurements() -> None:
    forecast = RateForecast(FixedPlanner(0), max_requests=4)

    assert (forecast.rates(), forecast.marginal_rate()) == ({}, 0.0)
