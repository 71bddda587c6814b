"""Predicted against published: every group is there, nothing is hidden, and DSpark's points are met."""

from dataclasses import replace

import pytest

from compare.published.anchors import published_sets
from compare.published.checks import CLAIMS, FIG7, FIG8_BUDGET, FIG8_THROUGHPUT, RACKS, Check, checks, left_out
from compare.report.document import Number, Plot, ReportDocument, Table
from compare.report.validation import TITLES, section


@pytest.fixture(scope="module")
def found() -> list[Check]:
    return checks()


def of(found: list[Check], group: str) -> list[Check]:
    return [check for check in found if check.group == group]


def test_every_group_has_points_and_every_point_is_whole(found: list[Check]) -> None:
    assert {check.group for check in found} == set(TITLES)
    for check in found:
        assert check.predicted > 0 and check.published > 0 and check.unit and check.source and check.label
    assert len({(check.group, check.what) for check in found}) == len(found)


def test_no_point_with_dspark_is_fitted(found: list[Check]) -> None:
    assert not any(check.fitted for check in found if "figure" in check.group or check.group == CLAIMS)
    assert not any(check.fitted for rack in RACKS.values() for check in of(found, rack[1]))


def test_figure_8_within_the_goals(found: list[Check]) -> None:
    throughput, budget = of(found, FIG8_THROUGHPUT), of(found, FIG8_BUDGET)

    assert [round(check.published) for check in throughput] == pytest.approx(
        [3736, 8762, 11806, 14280, 16090], rel=0.001
    )
    assert [check.published for check in budget] == pytest.approx([4.94, 4.49, 4.12, 3.75, 3.48], abs=0.01)
    assert max(abs(check.error) for check in throughput) < 0.05
    assert max(abs(check.predicted - check.published) for check in budget) < 0.4


def test_figure_7_and_what_the_paper_says(found: list[Check]) -> None:
    flat = of(found, FIG7)[:5]  # up to 150 tok/s/user; beyond, the paper's own figures part

    assert max(abs(check.error) for check in flat) < 0.06
    said = {check.what: check for check in of(found, CLAIMS)}
    assert said["V4-Flash: more throughput at 80 tok/s/user"].predicted == pytest.approx(51, abs=5)
    assert said["V4-Pro: more throughput at 35 tok/s/user"].predicted == pytest.approx(52, abs=4)
    for check in said.values():
        if check.span is not None:
            assert check.span[0] < check.predicted < check.span[1]


def test_every_published_set_is_checked_or_left_out_with_a_reason(found: list[Check]) -> None:
    sources = " ".join([check.source for check in found] + [left.source for left in left_out()])

    assert all(one.source in sources for one in published_sets().values())
    assert all(left.why for left in left_out())


def test_the_section_has_every_check_and_says_what_was_fitted(found: list[Check]) -> None:
    document = ReportDocument(
        "Validation", {}, (section(),)
    )  # which refuses digits without a source, and keys used twice
    tables = [block for block in document.blocks if isinstance(block, Table)]
    rows = [row for table in tables[:-1] for row in table.rows]

    assert len(rows) == len(found)
    assert sum(row[4] == "fitted" for row in rows) == sum(check.fitted for check in found)
    assert len(tables[-1].rows) == len(left_out())
    assert all(isinstance(row[3], Number) and row[3].unit == "%" for row in rows)
    plots = [block for block in document.blocks if isinstance(block, Plot)]
    assert [len(plot.series) for plot in plots] == [3, 2, 3]


def test_errors_are_relative() -> None:
    check = Check("group", "what", 110.0, 100.0, "tok/s", "somewhere", "measured")

    assert check.error == pytest.approx(0.1)
    assert replace(check, predicted=90.0).error == pytest.approx(-0.1)
