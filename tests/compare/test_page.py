"""The page has what the document has, and no number without a label and a source."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from compare.report.charts import svgs
from compare.report.document import Axis, Basis, Chart, Name, Plot, ReportDocument, ReportSection, Table
from compare.report.files import as_json, write
from compare.report.page import LABELS, _lines, page
from compare.report.style import COLOURS, NOTHING, edges, log_ticks, style, styles, tick
from compare.report.svg import SVG
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
    assert re.findall(r"""(?:url\(|src="|xlink:href=")(?!#|data:)""", outside) == []
    assert "default-src 'none'" in outside


def test_hostile_text_stays_text(html: str) -> None:
    assert html.count("<script") == html.count("</script>") == 2
    assert "&lt;script&gt;alert(" in html


def test_each_plot_has_its_drawings_and_each_series_its_sources(html: str, report: dict[str, Any]) -> None:
    found = re.findall(
        r'<div class="plot" id="plot-([^"]*)"><svg[^>]* class="(\w+)".*?<svg[^>]* class="(\w+)"', html, re.S
    )

    drawn = [b for s in report["sections"] for b in s["blocks"] if b["kind"] not in ("paragraph", "table")]
    assert found == [(block["key"], "wide", "narrow") for block in drawn]
    sources = [series["source"] for block in drawn for series in block.get("series", [])]
    assert all(f"<cite>{source}</cite>" in html for source in sources)
    for block in drawn:
        assert f'href="plots/{block["key"]}.csv"' in html
        assert f'id="plot-{block["key"]}"' in html


def test_every_value_of_a_chart_tells_itself_with_label_and_source(report: dict[str, Any]) -> None:
    """Those that cannot be drawn are not there, and missing cells of a heat map say what that means."""
    blocks = {block.key: block for block in document().blocks if isinstance(block, Chart)}
    wide, narrow = ({key: _texts(svgs(block, styles(document()))[i]) for key, block in blocks.items()} for i in (0, 1))

    assert wide == narrow
    assert {key: len(texts) for key, texts in wide.items()} == {
        "pareto": 9 + 8 + 2 + 2 + 1, "ttft": 6, "steps": 5, "payback": 35, "many": 900, "unknowns": 6
    }  # fmt: skip
    first = "8 × B200, DSpark\nSpeed of one answer: 400 tok/s\nTokens of the system: 400 tok/s\nbatch 1"
    assert wide["pareto"][0] == f"{first}\nsimulated: steps of 61 layers under 400 requests"
    assert wide["payback"][14].startswith("never pays\nUtilisation")
    assert "at its highest: 0.33 $/M" in wide["unknowns"][1]
    sources = {number["source"] for number in report["numbers"].values()}
    sources |= {
        one["source"]
        for s in report["sections"]
        for b in s["blocks"]
        for one in b.get("series", [b])
        if "source" in one
    }
    for text in (text for texts in wide.values() for text in texts):
        label, source = text.rpartition("\n")[2].split(": ", 1)
        assert label in set(Basis) and source in sources, text


def test_a_text_lies_where_its_value_is_drawn() -> None:
    """A marker and its text, a bar and its text, in both sizes."""
    for svg in svgs(next(b for b in document().blocks if isinstance(b, Plot)), styles(document())):
        root = ElementTree.fromstring(svg)
        for number in ("0", "2"):
            group = next(g for g in root.iter(f"{{{SVG}}}g") if g.get("data-series") == number)
            drawn = [(float(use.attrib["x"]), float(use.attrib["y"])) for use in group.iter(f"{{{SVG}}}use")]
            targets = [c for c in root.iter(f"{{{SVG}}}circle") if c.get("data-series") == number]
            placed = [(float(target.attrib["cx"]), float(target.attrib["cy"])) for target in targets]
            assert len(placed) == len(drawn) > 1
            assert all(at == pytest.approx(point, abs=0.1) for at, point in zip(placed, drawn, strict=True))


def _texts(svg: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter(f"{{{SVG}}}title")
    return [title.text or "" for title in found]


def test_a_system_looks_the_same_in_all_plots() -> None:
    found = styles(document())

    assert [*found][:4] == ["8 × B200, DSpark", "8 × B200, no drafter", "Bandwidth alone", "CS-3"]
    first = [style(index) for index in range(84)]
    assert len(set(first)) == 84
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
    assert [at for at in log_ticks([0.007, 1.1]) if 0.007 <= at <= 1.1] == [0.01, 0.1, 1]
    assert log_ticks([])


@pytest.mark.parametrize(("low", "high"), [(1.2, 2.8), (1.21, 1.35), (0.61, 4.1), (998, 1003)])
def test_a_short_logarithmic_axis_has_ticks_too(low: float, high: float) -> None:
    inside = [at for at in log_ticks([low, high]) if low <= at <= high]

    assert 2 < len(inside) < 9
    assert all(float(f"{at:.4g}") == pytest.approx(at) for at in inside)


def test_millions_are_short() -> None:
    assert [tick(at) for at in (999_999, 1e6, 2.5e7, 20_000, 0.05)] == ["1,000,000", "1M", "25M", "20,000", "0.05"]


def test_a_verdict_says_first_what_and_then_why() -> None:
    said = [{"name": "A"}, " does not pay: wherever it costs ", {"number": "n"}, " times."]
    more = [" It pays if ", {"name": "x"}, " is more: much more.", " Else not."]

    found = _lines([*said, *more])

    assert found == [
        [{"name": "A"}, " does not pay"],
        ["Wherever it costs ", {"number": "n"}, " times."],
        ["It pays if ", {"name": "x"}, " is more: much more."],
        ["Else not."],
    ]
    assert _lines(["All in one."]) == [["All in one."]]


def test_what_is_long_is_folded_and_still_there() -> None:
    rows = tuple((Name(f"row {number}"), None) for number in range(30))
    long, short = (Table(key, "Much", ("a", "b"), some) for key, some in (("long", rows), ("short", rows[:3])))
    effects = Table("effects-of-a", "all effects", ("a", "b"), rows[:3])
    nothing = Plot("nothing", "Nothing", Axis("a", ""), Axis("b", ""), ())
    blocks = (long, short, effects, nothing)

    html = page(ReportDocument("Folded", {}, (ReportSection("one", "One", blocks),)))

    assert html.count('<details class="fold">') == 2
    assert html.count("row 29") == 1
    assert NOTHING in html and 'id="plot-nothing"' not in html


def test_files_of_what_is_no_longer_in_the_report_go(tmp_path: Path) -> None:
    def written(*keys: str) -> set[str]:
        tables = tuple(Table(key, "Some", ("a",), (("b",),)) for key in keys)
        plot = Plot(f"plot-{keys[0]}", "Nothing", Axis("a", ""), Axis("b", ""), ())
        write(ReportDocument("Twice", {}, (ReportSection("one", "One", (*tables, plot)),)), tmp_path)
        return {str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/*")}

    written("before", "stays")
    (tmp_path / "tables" / "mine.csv").write_text("1")

    found = written("after", "stays")

    assert found == {*(f"tables/{key}.csv" for key in ("after", "stays", "mine")), *_plots("plot-after")}


def _plots(key: str) -> set[str]:
    return {f"plots/{key}.csv", f"plots/{key}.png"}
