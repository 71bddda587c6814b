"""A whole report, of made-up devices: every number is told with label and source, and a broken-off run goes on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from compare.report.build import Comparison
from compare.report.numbers import ranged
from compare.study import simulated
from compare.study.scenario import Scenario
from compare.study.simulated import served, wanted
from compare.study.study import Study, dollars, joules
from compare.study.unknowns import span
from tests.compare.made_up import figure, gpu, scenario
from tests.compare.walk import walk

ASKED = ("verdict", "per-unit", "per-megawatt", "per-dollar", "attribution", "break-even", "smallest", "sensitivity")
ALSO = ("latency", "claims", "assumptions", "validation")


@pytest.fixture(scope="module")
def report(report_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report_folder / "report.json").read_text())
    return found


def test_every_number_of_the_page_is_in_the_json_with_label_and_source(
    report_folder: Path, report: dict[str, Any]
) -> None:
    walk((report_folder / "index.html").read_text(), report)
    assert len(report["numbers"]) > 300


def test_all_that_was_asked_for_is_there(report: dict[str, Any]) -> None:
    assert {section["key"] for section in report["sections"]} == {*ASKED, *ALSO}


def test_measured_stands_on_the_same_axes_as_modelled(report: dict[str, Any]) -> None:
    for key in ("per-unit", "per-megawatt", "per-dollar"):
        (section,) = [one for one in report["sections"] if one["key"] == key]
        (plot,) = [block for block in section["blocks"] if block["kind"] == "plot"]
        labels = {series["name"]: series["label"] for series in plot["series"]}
        assert labels["ours"] == "measured"
        assert labels["DSpark"] == "modelled"


def test_results_that_rest_on_unknown_figures_show_their_range(report: dict[str, Any]) -> None:
    (section,) = [one for one in report["sections"] if one["key"] == "per-dollar"]
    (table,) = [block for block in section["blocks"] if block["kind"] == "table"]
    rows = {row[0]["name"]: row[1:] for row in table["rows"]}

    known, unknown = (report["numbers"][rows[name][0]["number"]] for name in ("DSpark", "special"))
    assert "low" not in known or known["low"] == known["high"] == known["value"]
    assert unknown["low"] < unknown["value"] < unknown["high"]


def test_pictures_and_tables_lie_beside_the_page(report_folder: Path, report: dict[str, Any]) -> None:
    blocks = [block for section in report["sections"] for block in section["blocks"] if "key" in block]

    for block in blocks:
        if block["kind"] == "table":
            assert (report_folder / "tables" / f"{block['key']}.csv").is_file()
        else:
            assert (report_folder / "plots" / f"{block['key']}.csv").is_file()
            assert (report_folder / "plots" / f"{block['key']}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_broken_off_goes_on(
    report_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was simulated is not simulated again; another scenario's points are not taken for this one's."""
    study = Comparison.of(report_folder.parent.parent / "made-up.yaml").study
    everything = served(study, tmp_path)
    first = [next(everything), next(everything)]
    computed: list[tuple[str, int]] = []
    compute = simulated.simulated

    def counted(one: Any, name: str, load: int) -> Any:
        computed.append((name, load))
        return compute(one, name, load)

    monkeypatch.setattr(simulated, "simulated", counted)
    again = list(served(study, tmp_path))

    assert again[:2] == first
    assert computed == wanted(study)[2:]
    other = study.varied(study.scenario.model_copy(update={"seed": 1}))
    next(served(other, tmp_path))
    assert computed[-1] == wanted(study)[0]


def test_simulation_adds_queues_to_steady_state(report: dict[str, Any]) -> None:
    (section,) = [one for one in report["sections"] if one["key"] == "latency"]
    (table,) = [block for block in section["blocks"] if block["kind"] == "table"]
    pairs = [[report["numbers"][cell["number"]]["value"] for cell in row[-2:]] for row in table["rows"] if row[-1]]

    assert len(pairs) > 6
    for found, steady in pairs:
        assert 0.7 * steady < found < 1.25 * steady  # some wait for a handoff; those in prefill share no decode step


def test_a_system_that_is_too_slow_at_an_end_gives_nothing_there(tmp_path: Path) -> None:
    """Throughput falls to nothing, cost rises without end."""
    plain = gpu(tmp_path, "plain")
    special = gpu(tmp_path, "special", bandwidth=figure((0.3, 30), "TB/s"))
    study = Study.of(Scenario.parse(scenario(plain, special)))
    ends = [study, *span(study, "special", 100, joules)]
    assert [one.best("special", 100) is None for one in ends] == [False, False, True]

    for measure, slow in ((lambda best: best.per_megawatt, 0.0), (dollars, math.inf)):
        number = ranged(ends, "special", 100, measure, "", slow)

        assert number is not None
        assert slow in (number.low, number.high)
