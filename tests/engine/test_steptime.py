"""Profiled step times: monotone whatever was measured, and kept only for the very thing they were measured on."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.steptime import Curve, ProfiledTimes

TABLE = ProfiledTimes(
    {"model": "m"}, 128, Curve((1, 4), (0.1, 0.4)), {1: Curve((1, 5), (1.0, 2.0)), 4: Curve((4, 20), (3.0, 7.0))}
)


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=8), st.lists(st.integers(0, 200), min_size=2, max_size=20))
def test_more_work_never_looks_cheaper(seconds: list[float], asked: list[int]) -> None:
    curve = Curve.fitted([2 * i + 1 for i in range(len(seconds))], seconds)

    seconds_at = [curve.at(count) for count in sorted(asked)]

    assert all(a <= b + 1e-9 for a, b in pairwise(seconds_at))
    assert min(seconds_at) >= min(seconds) - 1e-9


def test_rising_measurements_are_kept() -> None:
    assert Curve.fitted([1, 2, 4], [1.0, 2.0, 2.5]).seconds == (1.0, 2.0, 2.5)
    assert Curve.fitted([1, 2, 4], [1.0, 3.0, 2.0]).seconds == (1.0, 2.5, 2.5)


def test_the_curve_is_linear_between_measurements_and_extends_the_last_line() -> None:
    curve = Curve((1, 3, 5), (1.0, 2.0, 6.0))

    assert [curve.at(n) for n in (1, 2, 3, 4, 5, 6)] == [1.0, 1.5, 2.0, 4.0, 6.0, 8.0]


def test_a_number_of_requests_between_two_is_interpolated() -> None:
    assert TABLE.verify_seconds(1, 4, 0) == 1.75
    assert TABLE.verify_seconds(4, 4, 0) == 3.0
    assert TABLE.verify_seconds(2, 4, 0) == pytest.approx(1.75 + (3.0 - 1.75) / 3)
    assert TABLE.verify_seconds(9, 20, 0) == 7.0
    assert TABLE.draft_seconds(2, 0) == pytest.approx(0.2)


def test_a_table_is_read_back_only_with_its_own_key(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "times.json"
    assert ProfiledTimes.load(file, TABLE.key) is None
    TABLE.save(file)

    assert ProfiledTimes.load(file, TABLE.key) == TABLE
    assert ProfiledTimes.load(file, {"model": "other"}) is None
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        '{"key": {"model": "m"}}',
        '{"key": {"model": "m"}, "context": 1, "draft": {"counts": [1], "seconds": [1.0]}, "verify": {}}',
        '{"key": {"model": "m"}, "context": 1, "draft": {"counts": [1, 2], "seconds": [1.0]}, "verify": {}}',
        *(
            f'{{"key": {{"model": "m"}}, "context": 1, "draft": {curve}, "verify": {{"1": {curve}}}}}'
            for curve in (
                '{"counts": [], "seconds": []}',
                '{"counts": [2, 1], "seconds": [1.0, 2.0]}',
                '{"counts": [1, 2], "seconds": [2.0, 1.0]}',
                '{"counts": [1, 2], "seconds": [1.0, NaN]}',
                '{"counts": [1], "seconds": ["soon"]}',
            )
        ),
    ],
)
def test_an_invalid_table_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "times.json"
    file.write_text(content)

    with pytest.raises(ValueError, match=r"times\.json holds no table of step times \("):
        ProfiledTimes.load(file, TABLE.key)
