"""Fits of losses, and the published points behind them."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from compare.published.anchors import PUBLISHED, published_sets, read_sets
from compare.published.calibration import CALIBRATIONS, alone, calibrated
from compare.published.terms import Steps
from compare.study.scenario import Scenario
from compare.study.setups import BuiltSystems
from compare.study.steady import Steady
from engine.errors import ConfigError
from hardware.device import Device, Numbers
from hardware.fit import closest
from hardware.model import Model
from hardware.placement import Placement
from hardware.roofline import Losses, Roofline, Work

WORST = {
    "inferencex-v4-pro-gb300": 0.05,
    "inferencex-v4-pro-gb200": 0.25,
    "inferencex-v4-pro-gb300-later": 0.5,
    "inferencex-v4-pro-gb200-later": 0.3,
    "sglang-v4-flash-h200": 0.15,
    "sglang-r1-h100": 0.001,
    "kimi-k2-cs3": 0.001,
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_losses_are_shares_and_times_and_come_as_close_as_they_did(name: str) -> None:
    found = calibrated(name)
    losses = found.losses

    assert all(0 < share <= 1 for share in (losses.compute, losses.memory, losses.network))
    assert 1e-6 < losses.layer_seconds < 1e-3
    assert found.worst <= WORST[name]
    assert "fitted on" in losses.source and "http" in losses.source
    assert calibrated(name) is found


def test_what_rests_on_one_weak_point_says_so() -> None:
    assert calibrated("kimi-k2-cs3").losses.source.startswith("unverified")
    assert published_sets()["kimi-k2-cs3"].label == "unverified"


def test_an_unknown_fit_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'h300' is not known.*inferencex-v4-pro-gb300.*kimi-k2-cs3"):
        calibrated("h300")


@pytest.mark.parametrize("attention", ["data", "tensor"])
def test_steps_taken_apart_are_the_rooflines(attention: str) -> None:
    numbers, model = Numbers(Device.load("gb300-nvl72")), Model.of("deepseek-v4-pro")
    losses = Losses(0.3, 0.6, 0.2, 1e-4, 2e-3)
    roofline = Roofline(model, numbers, Placement(8, 2, attention), losses)  # type: ignore[arg-type]
    works = [Work(n, n * each, 9000) for n in (1, 3, 64, 999) for each in (1, 2, 4096)]

    apart = Steps.of(roofline, works).seconds(losses)

    whole = [roofline.verify_seconds(int(w.requests), int(w.tokens), w.context) for w in works]
    assert apart == pytest.approx(whole, rel=1e-9)


def test_a_search_finds_losses_again_and_leaves_others_alone() -> None:
    numbers, model = Numbers(Device.load("h200")), Model.of("deepseek-v4-flash")
    base = Losses(network=0.5, source="test")
    true = replace(base, compute=0.3, memory=0.6, layer_seconds=5e-5)
    works = [Work(n, n * each, 4096) for n in (1, 32, 512, 4096) for each in (1, 64)]
    steps = Steps.of(Roofline(model, numbers, Placement(4), base), works)
    wanted = steps.seconds(true)

    found = closest(
        lambda losses: tuple(steps.seconds(losses) / wanted - 1),
        base,
        float(wanted.min()),
        43,
        ("compute", "memory", "layer_seconds"),
    )

    assert found.worst < 0.01
    assert (found.losses.network, found.losses.step_seconds, found.losses.source) == (0.5, 0.0, "test")
    assert found.losses.compute == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("name", sorted(file.name for file in PUBLISHED.glob("*.yaml")))
def test_every_published_point_says_who_where_and_when(name: str) -> None:
    for found in read_sets(PUBLISHED / name).values():
        assert found.points and found.unit and found.date.year >= 2026


def test_what_a_published_set_must_not_have_is_named(tmp_path: Path) -> None:
    good = yaml.safe_load((PUBLISHED / "others.yaml").read_text())["kimi-k2-cs3"]
    file = tmp_path / "some.yaml"
    for wrong, what in (
        ({**good, "vendor": "x"}, r"some\.yaml: mine\.vendor"),
        ({**good, "label": "sure"}, r"mine\.label"),
        ({**good, "points": []}, r"mine\.points"),
        ({**good, "points": [{"value": -1}]}, r"mine\.points\.0\.value"),
    ):
        file.write_text(yaml.safe_dump({"mine": wrong}, default_flow_style=False))
        with pytest.raises(ConfigError, match=what):
            read_sets(file)
    file.write_text("- 1")
    with pytest.raises(ConfigError, match=r"some\.yaml: file: .*dictionary"):
        read_sets(file)
    file.write_text("a: [")
    with pytest.raises(ConfigError, match=r"some\.yaml"):
        read_sets(file)


@pytest.mark.parametrize(("name", "total", "active"), [("deepseek-r1", 671, 37), ("kimi-k2", 1026, 32)])
def test_models_that_only_validation_needs(name: str, total: float, active: float) -> None:
    model = Model.of(name)

    assert model.parameters / 1e9 == pytest.approx(total, rel=0.002)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.015)


@pytest.mark.parametrize("rack", ["gb300", "gb200"])
def test_a_system_of_a_scenario_is_off_by_what_its_fit_is(rack: str) -> None:
    """The fit's own treatment: eight GPUs decode, the fewest that hold the model prefill, with heads cut."""
    device, name = f"{rack}-nvl72", f"v4-pro-{rack}"
    prefill = {"device": device, "attention": "tensor"}
    content = {
        "title": "InferenceX",
        "model": "deepseek-v4-pro",
        "workload": {"input_tokens": 8192, "output_tokens": 1024},
        "devices": {device: {"losses": f"inferencex-{name}"}},
        "systems": {"none": {"decode": {"device": device, "units": [8]}, "prefill": prefill}},
    }
    scenario = Scenario.parse(content)
    steady = Steady.of(BuiltSystems(scenario).setups["none"][0], scenario, scenario.acceptance.drafting)

    for point, error in zip(published_sets()[name].points, calibrated(f"inferencex-{name}").errors, strict=True):
        assert point.at is not None
        if alone(point):
            assert steady.at(1).user_rate / point.at - 1 == pytest.approx(error, abs=0.001)
            continue
        best = steady.fullest(point.at, steady.setup.max_requests)
        assert best is not None
        throughput = best.throughput * 9 / sum(part.units for part in best.machines)
        assert throughput / point.value - 1 == pytest.approx(error, abs=0.05)
