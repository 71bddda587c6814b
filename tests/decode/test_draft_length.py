"""Tests the calibration of confidences by the acceptance of past drafts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decode.draft_length import OnlineCalibration

BLOCK = 3


def chances(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_confidences_are_used_as_they_are_at_first() -> None:
    assert OnlineCalibration(BLOCK).applied(chances(0.9, 0.5, 0.2)).tolist() == [[0.9, 0.5, 0.2]]


def test_drafts_that_survive_half_as_often_as_predicted_count_half() -> None:
    calibration, said = OnlineCalibration(BLOCK), chances(0.8, 0.4, 0.4)
    for step in range(400):
        calibration.observe(said, [BLOCK], [[1, 0, 0, 0, 1][step % 5]])  # 0.4 at the first place, never at others

    applied = calibration.applied(said)[0].tolist()

    assert applied[0] == pytest.approx(0.4, abs=0.1)
    assert applied[1] == applied[2] < 0.15


def test_unverified_drafts_change_nothing() -> None:
    calibration, said = OnlineCalibration(BLOCK), chances(0.8, 0.7, 0.6)
    for _ in range(100):
        calibration.observe(said, [1], [0])

    trust = calibration.applied(torch.ones(1, BLOCK, dtype=torch.float64))[0]

    assert trust[0] < 0.3
    assert calibration._observed_K[1:].tolist() == calibration._expected_K[1:].tolist()


def test_the_calibration_recovers() -> None:
    calibration, said = OnlineCalibration(BLOCK), chances(0.9, 0.9, 0.9)
    for accepted in [0] * 200 + [BLOCK] * 400:
        calibration.observe(said, [BLOCK], [accepted])

    assert calibration.applied(said)[0].tolist() == pytest.approx([1.0] * BLOCK, abs=0.05)


@given(
    st.lists(st.tuples(st.integers(0, BLOCK), st.integers(0, BLOCK)), max_size=30),
    st.lists(st.floats(0.0, 1.0), min_size=BLOCK, max_size=BLOCK),
)
def test_calibrated_survival_is_a_decreasing_probability(steps: list[tuple[int, int]], confidence: list[float]) -> None:
    """Calibrated survival is between 0 and 1 and never rises along a request."""
    calibration = OnlineCalibration(BLOCK)
    survival_RK = chances(*confidence).cumprod(dim=1)
    for length, accepted in steps:
        calibration.observe(survival_RK, [length], [min(length, accepted)])

    row = calibration.applied(survival_RK)[0].tolist()

    assert row == sorted(row, reverse=True)
    assert all(0.0 <= chance <= 1.0 for chance in row)
