"""The page has what the document has, and no number without a label and a source."""

import json
import re
from typing import Any

import pytest

from compare.report.document import Basis
from compare.report.files import as_json
from compare.report.looks import COLOURS, edges, log_ticks, look, looks
from compare.report.page import LABELS, page
from tests.compare.sample import document
from tests.compare.walk import walk


@pytest.fixture(scope="module")
def html() -> str:
    return page(document())


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return as_json(document())


def test_every_number_of_the_page_is_the_jsons(html: str, report: dict[str, Any]) -> None:
    walk(html, report)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<h2>How fast</h2>", "<h2>How fast in 2026</h2>", "without label and source"),
        ('data-number="summary.0.1"', 'data-number="summary.0.2"', "the JSON has not"),
        (">2,100 tok/s<", ">2,200 tok/s<", "the JSON '2,100 tok/s'"),
        ("</h2>", "</h3>", "is closed by"),
    ],
)
def test_the_walk_sees_what_is_wrong(html: str, report: dict[str, Any], before: str, after: str, said: str) -> None:
    assert before in html

    with pytest.raises(AssertionError, match=said):
        walk(html.replace(before, after, 1), report)


def test_the_walk_sees_a_number_without_source_or_place(html: str, report: dict[str, Any]) -> None:
    first, *_ = report["numbers"]
    bare = {**report, "numbers": {**report["numbers"], first: {**report["numbers"][first], "source": ""}}}
    more = {**report, "numbers": {**report["numbers"], "one.more": report["numbers"][first]}}

    with pytest.raises(AssertionError, match=first):
        walk(html, bare)
    with pytest.raises(AssertionError, match="the page has not"):
        walk(html, more)


def test_the_page_loads_nothing(html: str) -> None:
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)

    assert re.findall(r"<(?:link|img|iframe|script)\b", outside) == []
    assert "url(" not in outside
    assert "default-src 'none'" in outside
    assert "plotly.js v" in html


def test_hostile_text_stays_text(html: str) -> None:
    assert html.count("<script") == html.count("</script>") == 3
    assert "&lt;script&gt;alert(" in html


def test_each_plot_has_its_figure_and_each_series_its_sources(html: str, report: dict[str, Any]) -> None:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found
    figures = json.loads(found[1])

    drawn = [b for s in report["sections"] for b in s["blocks"] if b["kind"] not in ("paragraph", "table")]
    assert list(figures) == [block["key"] for block in drawn]
    sources = [series["source"] for block in drawn for series in block.get("series", [])]
    assert all(f"<cite>{source}</cite>" in html for source in sources)
    for block in drawn:
        assert f'href="plots/{block["key"]}.csv"' in html
        assert f'id="plot-{block["key"]}"' in html


def test_a_system_looks_the_same_in_all_plots() -> None:
    found = looks(document())

    assert [*found][:4] == ["8 × B200, DSpark", "8 × B200, no drafter", "Bandwidth alone", "CS-3"]
    first = [look(place) for place in range(56)]
    assert len(set(first)) == 56
    assert len({(one.colour) for one in first[: len(COLOURS)]}) == len(COLOURS)


@pytest.mark.parametrize(("paper", "which"), [("#ffffff", 0), ("#14181d", 1)])
def test_colours_stand_out_from_the_paper(paper: str, which: int) -> None:
    """As much as graphics need by WCAG: three to one."""
    for pair in COLOURS:
        ratio = sorted((_luminance(paper) + 0.05, _luminance(pair[which]) + 0.05))
        assert ratio[1] / ratio[0] >= 3, pair[which]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_label_has_a_mark_of_its_own() -> None:
    assert set(LABELS) == set(Basis)
    assert len({mark for mark, _ in LABELS.values()}) == len(Basis)


def test_cells_meet_halfway() -> None:
    assert edges([1, 2, 4], log=False) == [0.5, 1.5, 3, 5]
    assert edges([1, 100], log=True) == pytest.approx([0.1, 10, 1000])
    assert edges([7], log=False) == [6.5, 7.5]


def test_ticks_of_a_logarithmic_axis_are_round() -> None:
    assert {20, 50, 100, 200} < set(log_ticks([20, 700]))
    assert 50 not in log_ticks([1, 1e6])
    assert log_ticks([])
