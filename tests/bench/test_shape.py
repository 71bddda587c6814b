"""What every benchmark has in common, without timing anything."""

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import benchmarks, main
from bench.shape import BenchOptions, BenchReport, Goal, Samples


@pytest.fixture
def report(tmp_path: Path) -> BenchReport:
    return BenchReport("shape", BenchOptions(device=torch.device("cpu"), threads=1, quick=True, out=tmp_path))


@pytest.mark.parametrize(
    ("figure", "at_most", "line"),
    [
        (0.7, False, "GOAL speed: 0.7 x against at least 0.7 x: met"),
        (0.694, False, "GOAL speed: 0.694 x against at least 0.7 x: missed"),
        (0.694, True, "GOAL speed: 0.694 x against at most 0.7 x: met"),
        (0.71, True, "GOAL speed: 0.71 x against at most 0.7 x: missed"),
    ],
)
def test_a_goal_says_its_figure_its_target_and_whether_it_is_met(figure: float, at_most: bool, line: str) -> None:
    assert str(Goal(what="speed", figure=figure, target=0.7, unit="x", at_most=at_most)) == line


def test_the_result_file_tells_figures_machine_and_versions(report: BenchReport) -> None:
    report.ceiling("memory, GB/s", 30.0)
    report.table("rates", [{"side": "ours", "tok_s": 12.5}])
    report.note("noisy")
    report.goal("speed", 1.5, 2.0, "x")

    found = json.loads(report.close().read_text())

    assert found["benchmark"] == "shape"
    assert found["ceilings"] == {"memory, GB/s": 30.0}
    assert found["figures"] == {"rates": [{"side": "ours", "tok_s": 12.5}]}
    assert found["notes"] == ["noisy"]
    assert found["goals"] == [
        {"what": "speed", "figure": 1.5, "target": 2.0, "unit": "x", "at_most": False, "met": False}
    ]
    assert set(found["machine"]) >= {"cpu", "cores", "memory_bytes", "device"}
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) == {"python", "torch", "transformers", "nixl", "ray"}
    assert found["date"][:2] == "20"


def test_the_goals_are_the_last_that_is_printed(report: BenchReport, capsys: pytest.CaptureFixture[str]) -> None:
    report.goal("a", 1.0, 1.0, "x")
    report.goal("b", 0.0, 1.0, "x")
    report.table("rates", [{"side": "ours"}])

    report.close()

    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["GOAL a", "GOAL b"]


def test_sides_take_turns_at_being_first_and_the_warm_up_does_not_count(report: BenchReport) -> None:
    report.ceiling("none", 0.0)
    calls: list[tuple[str, int]] = []

    def side(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run(number: int) -> float:
            calls.append((name, number))
            return seconds + number

        return run

    samples = report.alternately("x", {"a": side("a", 0.0), "b": side("b", 10.0)}, range(3))

    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert samples.seconds == {"a": [1.0, 2.0], "b": [11.0, 12.0]}


def test_a_comparison_is_made_within_each_round() -> None:
    """The machine was ten times slower in the second round; the ratio of the medians would be 2.3."""
    samples = Samples({"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 20.0, 3.0]})

    assert samples.median("theirs") == 3.0
    assert samples.speed_up("ours", "theirs") == 2.0


def test_no_figure_comes_before_the_ceiling(report: BenchReport) -> None:
    with pytest.raises(AssertionError, match="ceiling first"):
        report.alternately("x", {"a": float}, range(2))


def test_the_list_has_every_benchmark_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([])

    printed = capsys.readouterr().out
    assert set(benchmarks()) >= {"decode", "gpu", "handoff"}
    assert "shape" not in benchmarks()
    for name, line in benchmarks().items():
        assert line.endswith("."), f"bench/{name}.py needs a docstring whose first line is a sentence"
        assert f"{name:10} {line}\n" in printed


def test_without_a_gpu_its_figures_are_not_yet_measured(tmp_path: Path) -> None:
    main(["gpu", "--device", "cpu", "--out", str(tmp_path)])

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "not yet measured" in found["notes"][0]
    assert not found["figures"]
    assert not found["goals"]
