"""What a document refuses, how its numbers read, and the files that are written of it."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compare.report import files
from compare.report.document import (
    Axis,
    Basis,
    Heat,
    Name,
    Number,
    Paragraph,
    Plot,
    ReportDocument,
    ReportSection,
    Table,
)
from engine.errors import ConfigError
from tests.compare.sample import HOSTILE, document, number, ranged

PLOTS = ("pareto", "ttft", "steps", "payback", "many", "unknowns")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report")
    files.write(document(), found)
    return found


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "report.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (number(412.3), "412 tok/s"),
        (number(48000.4), "48,000 tok/s"),
        (number(0.0123, ""), "0.0123"),
        (number(0.00000123, "s"), "1.23e-06 s"),
        (number(0, "s"), "0 s"),
        (number(3.2, "$"), "$3.20"),
        (number(-3.2, "$"), "-$3.20"),
        (number(math.inf), "infinite tok/s"),
        (ranged(412, 310, 640), "412 (310 to 640) tok/s"),
        (ranged(412, 412.1, 412.2), "412 tok/s"),
    ],
)
def test_a_number_reads_as_it_should(found: Number, text: str) -> None:
    assert found.text == text


def test_digits_need_a_number_or_a_name() -> None:
    Paragraph(("on ", Name("8 × B200")))
    for wrong in (
        lambda: Paragraph(("on 8 of them",)),
        lambda: Table("t", "Table", ("a",), (("5 ms",),)),
        lambda: ReportSection("s", "Table 1", ()),
        lambda: Plot("p", "At 32k", Axis("x", ""), Axis("y", ""), ()),
    ):
        with pytest.raises(ValueError, match="without label and source"):
            wrong()


@pytest.mark.parametrize("key", ["a", "../b", "With Space", ""])
def test_keys_are_names_of_files_and_unique(key: str) -> None:
    table, same = (Table(k, "Table", ("a",), ()) for k in ("a", key))

    with pytest.raises(ValueError, match="keys are of"):
        ReportDocument("Title", {}, (ReportSection("one", "One", (table,)), ReportSection("two", "Two", (same,))))


def test_a_heat_map_has_a_value_or_none_for_each_cell() -> None:
    axis = Axis("a", "")

    with pytest.raises(AssertionError):
        Heat("h", "Heat", axis, axis, axis, (1.0, 2.0), (1.0,), ((1.0,),), Basis.MODELLED, "made up")


def test_the_json_has_every_number_with_label_and_source(report: dict[str, Any]) -> None:
    numbers = report["numbers"]

    assert numbers["summary.0.1"] == {
        "value": 412,
        "unit": "tok/s",
        "low": 310,
        "high": 640,
        "label": "simulated",
        "source": "simulated over every unknown, 400 requests",
        "text": "412 (310 to 640) tok/s",
    }
    assert numbers["summary.systems.2.3"]["value"] is None
    assert numbers["summary.systems.note.1"]["text"] == "8,192 tokens"
    assert {"speed.pareto.mark.0", "speed.steps.step.4", "money.unknowns.base", "money.unknowns.1.low"} < set(numbers)
    assert all(found["label"] and found["source"] and found["text"] for found in numbers.values())
    assert report["about"]["Command"] == HOSTILE


def test_the_json_has_all_values_of_the_plots(report: dict[str, Any]) -> None:
    blocks = {block.get("key"): block for section in report["sections"] for block in section["blocks"]}

    plain = blocks["pareto"]["series"][1]
    assert (plain["name"], plain["label"]) == ("8 × B200, no drafter", "modelled")
    assert (len(plain["x"]), plain["y"][-1]) == (9, None)
    assert plain["source"]
    assert blocks["payback"]["z_values"][2][0] is None
    assert blocks["payback"]["missing"] == "never pays"
    assert blocks["ttft"]["series"][0]["x"][1] == "Code, 32k"


def test_tables_as_csv(folder: Path) -> None:
    found = rows(folder / "tables" / "systems.csv")

    assert len(found) == 18
    assert found[1] == {
        "row": "1",
        "column": "Fastest answer",
        "value": "412",
        "unit": "tok/s",
        "low": "310",
        "high": "640",
        "label": "simulated",
        "source": "simulated over every unknown, 400 requests",
    }
    assert found[8]["value"] == ""
    assert (found[12]["value"], found[15]["value"]) == (HOSTILE, "inf")


def test_plots_as_csv(folder: Path) -> None:
    found = {key: rows(folder / "plots" / f"{key}.csv") for key in PLOTS}

    assert len(found["pareto"]) == 9 + 9 + 2 + 2 + 2 + 3
    assert all(row["label"] and row["source"] for key in PLOTS for row in found[key])
    assert found["pareto"][3]["note"] == "batch 8"
    assert found["payback"][14]["z"] == "never pays"
    assert [row["end"] for row in found["unknowns"][:3]] == ["base", "low", "high"]


def test_pictures_are_pictures(folder: Path) -> None:
    from matplotlib.image import imread

    for key in PLOTS:
        pixels = imread(folder / "plots" / f"{key}.png")
        assert pixels.shape[:2] == (750, 1200), key
        assert pixels.std() > 0.05, f"{key}.png is blank"


def test_nothing_else_is_there(folder: Path) -> None:
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}

    plots = {f"plots/{key}.{ending}" for key in PLOTS for ending in ("csv", "png")}
    assert found == {"index.html", "report.json", "tables/systems.csv", *plots}


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("before")

    def write_half() -> None:
        with files.atomic_write(file) as partial:
            partial.write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write_half()

    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files.check_library()
    monkeypatch.setattr(files, "LIBRARY", "no_such_library")

    with pytest.raises(ConfigError, match=r"needs no_such_library: pip install 'sparkpool\[compare\]'"):
        files.write(document(), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_document_and_its_json_need_no_matplotlib() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None;"
        "import compare.report.page, compare.report.charts; from compare.report.files import as_json;"
        "from tests.compare.sample import document; as_json(document())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
