"""DSpark from a curve with MTP-1: limits that follow from what it is, and the paper's figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.published.curves import figure_points
from compare.study.dspark import (
    PUBLISHED_AUC,
    PUBLISHED_DSPARK,
    PUBLISHED_MTP,
    CurvePoint,
    Drafting,
    StepCurve,
    _auc,
    predicted,
)
from engine.errors import ConfigError

LAYERS = 43
CONCURRENCIES = (4.0, 16.0, 64.0, 128.0, 256.0)


def curve(fixed: float, per_request: float) -> list[CurvePoint]:
    """With MTP-1, of steps that take so many seconds and so many more for each request."""
    return [CurvePoint(c, PUBLISHED_MTP * c / (fixed + per_request * c)) for c in CONCURRENCIES]


@pytest.fixture(scope="module")
def drafting() -> Drafting:
    return Drafting()


def test_drafts_that_nearly_always_survive_are_all_verified_where_steps_cost_nothing_more() -> None:
    sure = Drafting((1.999, 2.997, 3.994))

    points = predicted(curve(0.02, 1e-7), LAYERS, sure)

    for point, before in zip(points, curve(0.02, 1e-7), strict=True):
        assert point.verify_tokens == pytest.approx(4, abs=0.01)
        assert point.throughput / before.throughput == pytest.approx(
            3.994 / PUBLISHED_MTP / (1 + 2 / (LAYERS + 1)), rel=0.01
        )


def test_where_each_token_costs_the_same_few_are_verified(drafting: Drafting) -> None:
    free, dear = (predicted(curve(*times), LAYERS, drafting) for times in ((0.02, 1e-7), (1e-6, 1e-3)))

    for cheap, costly in zip(free, dear, strict=True):
        assert cheap.verify_tokens > 5.8
        assert costly.verify_tokens < 2.5


def test_drafts_that_never_survive_make_nothing_faster() -> None:
    hopeless = Drafting((1.02, 1.02 + 1e-4))

    for times in ((0.02, 1e-4), (1e-6, 1e-3), (0.05, 1e-6)):
        for point, before in zip(predicted(curve(*times), LAYERS, hopeless), curve(*times), strict=True):
            without = before.concurrency / (times[0] + times[1] * before.concurrency / 2)
            assert point.throughput <= 1.03 * without


@settings(max_examples=15, deadline=None)
@given(
    worse=st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3),
    better=st.floats(1.01, 1.1),
    fixed=st.floats(1e-3, 0.05),
    each=st.floats(1e-5, 1e-3),
)
def test_more_that_survives_is_never_slower(worse: list[float], better: float, fixed: float, each: float) -> None:
    def of(chances: list[float]) -> Drafting:
        return Drafting(tuple(float(length) for length in 1 + np.cumsum(np.cumprod(chances))))

    before = predicted(curve(fixed, each), LAYERS, of(worse))
    after = predicted(curve(fixed, each), LAYERS, of([better * chance for chance in worse]))

    for low, high in zip(before, after, strict=True):
        assert high.throughput >= 0.995 * low.throughput  # drawn, not exact


def test_confidences_have_the_published_means_and_tell_as_well_as_published(drafting: Drafting) -> None:
    assert drafting.gained(drafting.block) + 1 == pytest.approx(PUBLISHED_DSPARK[-1], abs=0.02)
    by_place = drafting._drawn(_sharpness(drafting))

    assert by_place.mean(axis=1) == pytest.approx(np.diff([1.0, *PUBLISHED_DSPARK]), abs=0.01)
    assert _auc(by_place) == pytest.approx(sum(PUBLISHED_AUC) / 2, abs=0.001)


def _sharpness(drafting: Drafting) -> float:
    """At which the confidences are those of `survival`."""
    low, high = 0.01, 100.0
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _auc(drafting._drawn(middle)) > drafting.auc else (low, middle)
    assert np.sort(drafting._drawn(low), axis=None)[::-1] == pytest.approx(drafting.survival)
    return low


def test_the_most_certain_drafts_gain_most(drafting: Drafting) -> None:
    gains = [drafting.gained(drafts) for drafts in (0, 1, 2, 3, 4, 5)]

    assert gains[0] == 0
    assert np.all(np.diff(gains) > 0)
    assert np.all(np.diff(gains, 2) < 0)


def test_steps_are_those_of_the_curve_and_never_fall() -> None:
    steps = StepCurve(curve(0.01, 1e-4), LAYERS)

    works = np.array([c * (2 * LAYERS + 1) for c in CONCURRENCIES])
    assert steps.at(works) == pytest.approx([0.01 + 1e-4 * c for c in CONCURRENCIES])
    assert steps.fixed == pytest.approx(0.01)
    assert np.all(np.diff(steps.at(np.linspace(0, 2 * works[-1], 500))) >= 0)


@pytest.mark.parametrize("lengths", [(), (1.0,), (1.5, 1.4), (1.5, 2.2), (2.5,)])
def test_lengths_that_cannot_be_are_refused(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="accepted length"):
        Drafting(lengths)


def test_two_points_are_no_curve() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        StepCurve(curve(0.01, 1e-4)[:2], LAYERS)


def test_v4_pro_at_35_tokens_a_second(drafting: Drafting) -> None:
    """The paper: 52% more throughput."""
    before = figure_points("V4-Pro")
    after = predicted(before, 61, drafting)

    def at_35(points: list[CurvePoint]) -> float:
        rates = sorted((point.user_rate, point.throughput) for point in points)
        return float(np.interp(35, *zip(*rates, strict=True)))

    assert at_35(after) / at_35(before) == pytest.approx(1.52, abs=0.04)
