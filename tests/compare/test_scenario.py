"""Scenarios: what is refused before anything runs, and the shipped ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from compare.report.build import Comparison
from compare.study.scenario import Scenario
from compare.study.study import Rivals
from compare.study.unknowns import uses
from compare.study.verdict import ratio
from engine.errors import ConfigError
from tests.compare.made_up import figure, gpu, scenario

SHIPPED = sorted((Path(__file__).parent.parent.parent / "deploy" / "scenarios").glob("*.yaml"))


def content(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    return scenario(gpu(tmp_path, "plain"), gpu(tmp_path, "special"), **changed)


def written(tmp_path: Path, what: dict[str, Any]) -> Path:
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(what, sort_keys=False))
    return file


def refused(tmp_path: Path, what: dict[str, Any]) -> str:
    """By the command, in one line, before anything was written."""
    out = tmp_path / "report"
    result = CliRunner().invoke(app, ["compare", str(written(tmp_path, what)), "--out", str(out)])

    assert result.exit_code == 1
    assert not out.exists()
    return result.output


def test_a_scenario_that_is_right_is_taken(tmp_path: Path) -> None:
    Comparison.of(written(tmp_path, content(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": ["plain", "nobody"]}, "steps: no system 'nobody'"),
        ({"contenders": {"nobody": "plain"}}, "contenders: no system 'nobody'"),
        ({"contenders": {"plain": "nobody"}}, "contenders: no system 'nobody'"),
        ({"contenders": {"plain": "plain"}}, "held against itself"),
        ({"modle": "x"}, "modle"),
        ({"model": "qwen9"}, "qwen9"),
        ({"workload": {"input_tokens": 0, "output_tokens": 1}}, "workload.input_tokens"),
        ({"systems": {}, "steps": [], "contenders": {}}, "nothing to compare"),
        ({"power": "chip"}, "has no figure for the chip alone"),
        ({"acceptance": {"dspark": [1.5, 2.5]}}, "each draft adds"),
        ({"utilisation": 1.5}, "utilisation"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, content(tmp_path, **changed))


def test_a_device_that_nobody_knows(tmp_path: Path) -> None:
    what = content(tmp_path)
    what["devices"]["warp-core"] = what["devices"].pop(str(tmp_path / "special.yaml"))
    what["systems"]["special"]["decode"]["device"] = "warp-core"

    said = refused(tmp_path, what)

    assert "systems.special" in said
    assert "warp-core" in said


def test_a_device_of_which_nothing_is_said(tmp_path: Path) -> None:
    what = content(tmp_path)
    del what["devices"][str(tmp_path / "special.yaml")]

    assert f"systems.special: device '{tmp_path / 'special.yaml'}' is not in devices" in refused(tmp_path, what)


def test_a_model_that_does_not_fit_says_by_how_much(tmp_path: Path) -> None:
    said = refused(tmp_path, content(tmp_path, model="deepseek-v4-pro"))

    assert "systems.plain" in said
    assert "GB too much" in said


def test_a_request_that_no_replica_has_room_for(tmp_path: Path) -> None:
    workload = {"input_tokens": 3_000_000, "output_tokens": 200}

    said = refused(tmp_path, content(tmp_path, workload=workload))

    assert "systems.plain: no replica has room for one request of 3000200 tokens" in said


def test_a_use_that_nothing_has_room_for_is_no_fault(tmp_path: Path) -> None:
    """Prompts four times as long fit neither side: what results depend on says so, and goes on."""
    workload = {"input_tokens": 200_000, "output_tokens": 200}
    study = Comparison.of(written(tmp_path, content(tmp_path, workload=workload))).study

    (context,) = [one for one in uses(study.scenario) if one.name == "context"]
    found = ratio(Rivals("special", "DSpark", 20))(study.varied(context.high(study.scenario)))

    assert found == math.inf


def test_drafts_on_a_helper_need_drafts(tmp_path: Path) -> None:
    what = content(tmp_path)
    helper = {"device": str(tmp_path / "special.yaml"), "does": "drafts", "units": [1]}
    what["systems"]["special"] = {**what["systems"]["plain"], "helper": helper}

    assert "is to draft, and drafts is 'none'" in refused(tmp_path, what)


def test_a_fit_that_nobody_made(tmp_path: Path) -> None:
    what = content(tmp_path)
    what["devices"][str(tmp_path / "plain.yaml")] = {"losses": "nobody"}

    assert "nobody" in refused(tmp_path, what)


def test_an_assumption_about_a_figure_that_there_is_not(tmp_path: Path) -> None:
    what = content(tmp_path)
    what["devices"][str(tmp_path / "plain.yaml")]["assumed"] = {"warp": 1.0}

    assert "warp" in refused(tmp_path, what)


def run_of(**changed: Any) -> dict[str, Any]:
    """What `sparkpool bench --json` writes, of two requests."""
    one = {"status": "OK", "sent": 0.0, "ended": 2.1, "prompt_tokens": 1000, "messages": [[0.1, 1], [2.0, 199]]}
    summary = {"requests": 2, "completed": 2, "output_tokens_per_second": 190.0, "requests_per_second": 1.0}
    summary |= {"mean_prompt_tokens": 1000.0, "mean_output_tokens": 200.0}
    latency = {"tpot": {"mean": 0.0095}, "e2e": {"mean": 2.1}}
    content = {"config": {"concurrency": 2}, "summary": {**summary, "latency": latency, "emulated": None}}
    return {**content, "requests": [one, one], **changed}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("not json", "run.json"),
        ({"summary": {}}, "is no JSON of `sparkpool bench --json`"),
        (run_of(summary={**run_of()["summary"], "mean_prompt_tokens": 64.0}), "another workload"),
        (run_of(summary={**run_of()["summary"], "completed": 1}), "1 of 2 requests failed"),
        (run_of(summary={**run_of()["summary"], "completed": 0}), "no request was completed"),
        (
            run_of(summary={**run_of()["summary"], "emulated": {"devices": ["x"], "comparable": False}}),
            "this is no comparison",
        ),
        (
            run_of(summary={**run_of()["summary"], "emulated": {"devices": ["x, time x 400"], "comparable": True}}),
            "are no seconds of the device",
        ),
    ],
)
def test_measured_files_that_do_not_compare(tmp_path: Path, run: Any, said: str) -> None:
    (tmp_path / "run.json").write_text(run if isinstance(run, str) else json.dumps(run))

    output = refused(tmp_path, content(tmp_path, measured={"ours": {"files": ["run.json"]}}))

    assert "run.json" in output
    assert said in output


def test_a_measured_run_stands_beside_the_modelled_ones(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run_of()))
    section = {"files": ["run.json"], "device": str(tmp_path / "plain.yaml"), "units": 2}

    measured = Comparison.of(written(tmp_path, content(tmp_path, measured={"ours": section}))).measured["ours"]

    (run,) = measured.runs
    assert run.throughput == 190.0
    assert run.user_rate == pytest.approx(1 / 0.0095)
    assert run.ttft["50"] == pytest.approx(0.1)
    assert measured.watts == pytest.approx(2000)
    assert measured.dollars_per_second == pytest.approx(4 / 3600)
    assert not measured.emulated


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_scenarios_are_right(file: Path) -> None:
    comparison = Comparison.of(file)

    for name in comparison.study.scenario.systems:
        assert any(one.at(1).user_rate > 1 for one in comparison.study.steady[name])


@pytest.mark.parametrize(
    "arguments", [[], ["--validate", "--predict-dspark", "x.csv"], ["x.yaml", "--validate"], ["x.yaml", "--model", "m"]]
)
def test_exactly_one_thing_is_asked_for(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", *arguments])

    assert result.exit_code == 1
    assert "give one of" in result.output or "--model" in result.output


def test_a_price_is_enough_where_no_cost_is_published(tmp_path: Path) -> None:
    special = {"price": figure((10_000, 40_000), "$")}
    plain, other = gpu(tmp_path, "plain"), gpu(tmp_path, "special", **special)
    bare = yaml.safe_load(Path(other).read_text())
    del bare["cost"]
    Path(other).write_text(yaml.safe_dump(bare))

    comparison = Comparison.of(written(tmp_path, scenario(plain, other)))

    best = comparison.study.best("special", 50)
    assert best is not None
    assert best.per_million is not None
    del bare["price"]
    Path(other).write_text(yaml.safe_dump(bare))
    with pytest.raises(ConfigError, match="has no figure for price"):
        Comparison.of(written(tmp_path, scenario(plain, other)))
    assert Scenario.load(tmp_path / "scenario.yaml").contenders == {"special": "DSpark"}


def test_paths_begin_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(tmp_path, "plain")
    gpu(tmp_path, "special")
    model = Path(__file__).parent.parent.parent / "hardware" / "models" / "qwen3-8b.json"
    (tmp_path / "model.json").write_text(model.read_text())
    file = written(tmp_path, scenario("plain.yaml", "special.yaml", model="model.json"))
    monkeypatch.chdir("/")

    assert Comparison.of(file).study.best("special", 50)
