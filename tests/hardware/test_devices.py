"""Devices as published: whose word each figure is, what is refused, and that figures of one device agree."""

import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import ConfigError
from hardware.device import DEVICES, Device, Numbers, known_devices
from hardware.figure import Figure, Label

ALL = [
    "b200",
    "b300",
    "cerebras-cs-3",
    "gb200-nvl72",
    "gb300-nvl72",
    "groq-3-lpx",
    "h100",
    "h200",
    "trainium2",
    "trainium3",
    "vera-rubin-nvl72",
]
UNITS_OF = {  # by what a figure's name is about
    "memory": "GB TB GiB",
    "bandwidth": "TB/s PB/s",
    "fp4 fp8 bf16": "TFLOP/s PFLOP/s",
    "scale_up scale_out": "GB/s TB/s",
    "scale_up_units rack_units": "count",
    "hop bridge": "ns us ms",
    "chip_power power rack_power": "W kW",
    "price rack_price": "$",
    "cost rent": "$/h",
}


def numbers(name: str, **assumed: float) -> Numbers:
    return Numbers(Device.load(name), assumed)


def test_these_devices_are_known_and_no_others() -> None:
    assert known_devices() == ALL


@pytest.mark.parametrize("name", ALL)
def test_each_figure_says_whose_word_it_is_or_why_its_range(name: str) -> None:
    figures = Device.load(name).figures

    for figure_name, figure in figures.items():
        assert (figure.label is None) == (figure.unknown is not None), figure_name
        assert figure.source.strip() and "research" not in figure.source, figure_name
        assert date(2026, 1, 1) <= figure.date <= date(2026, 11, 24), figure_name
        units = next(units for names, units in UNITS_OF.items() if figure_name in names.split())
        assert figure.unit in units.split(), figure_name


@pytest.mark.parametrize("name", ALL)
def test_each_device_has_what_a_step_time_needs(name: str) -> None:
    device = Device.load(name)

    assert device.fp8 or device.bf16
    assert device.scale_up or device.scale_out
    assert "hop" in device.figures
    assert Numbers(device).has("cost") or Numbers(device).has("price")
    assert Numbers(device).has("power")
    assert (device.scale_up is None) == (device.scale_up_units is None)


BREAKS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("bandwidth.source", lambda f: f["bandwidth"].pop("source"), "Field required"),
    ("bandwidth.source", lambda f: f["bandwidth"].update(source=""), "at least 8"),
    ("bandwidth.date", lambda f: f["bandwidth"].pop("date"), "Field required"),
    ("bandwidth.unit", lambda f: f["bandwidth"].pop("unit"), "Field required"),
    ("bandwidth", lambda f: f["bandwidth"].pop("label"), "a value has a label"),
    ("file", lambda f: f["bandwidth"].update(unit="TB"), "bandwidth: TB is none of GB/s, TB/s, PB/s"),
    ("bandwidth.label", lambda f: f["bandwidth"].update(label="rumour"), "'vendor'"),
    ("bandwidth", lambda f: f["bandwidth"].update(unknown=[3, 4]), "either value or unknown, and not both"),
    ("bandwidth", lambda f: f["bandwidth"].pop("value"), "either value or unknown, and not both"),
    ("hop", lambda f: f["hop"].update(label="vendor"), "an unknown has none"),
    ("bandwidth", lambda f: f["bandwidth"].update(unit="TB/h"), "unit 'TB/h' is not one of"),
    ("bandwidth.remark", lambda f: f["bandwidth"].update(remark="fast"), "Extra inputs"),
    ("colour", lambda f: f.update(colour="green"), "Extra inputs"),
    ("memory", lambda f: f.pop("memory"), "Field required"),
    ("kind", lambda f: f.update(kind="abacus"), "'gpu'"),
    ("bandwidth", lambda f: f["bandwidth"].update(value=-3.35), "no range of positive numbers"),
    ("bandwidth", lambda f: f["bandwidth"].update(value=0), "no range of positive numbers"),
    ("bandwidth", lambda f: f["bandwidth"].update(value=math.nan), "no range of positive numbers"),
    ("hop", lambda f: f["hop"].update(unknown=[10, 1]), "no range of positive numbers"),
    ("hop", lambda f: f["hop"].update(unknown=[1, math.inf]), "no range of positive numbers"),
]


@pytest.mark.parametrize(("figure", "change", "why"), BREAKS, ids=[f"{n}-{b[0]}" for n, b in enumerate(BREAKS)])
def test_a_mistake_is_refused_by_file_and_figure(
    figure: str, change: Callable[[dict[str, Any]], object], why: str, tmp_path: Path
) -> None:
    fields = yaml.safe_load((DEVICES / "h100.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(fields))
    assert Device.load(str(file)) == Device.load("h100")

    change(fields)
    file.write_text(yaml.safe_dump(fields))

    with pytest.raises(ConfigError) as caught:
        Device.load(str(file))
    assert str(caught.value).startswith(f"{file}: {figure}: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [("{", "not YAML"), ("", "file: "), ("- h100", "file: ")])
def test_a_file_that_is_no_device_is_refused(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        Device.load(str(file))
    assert str(caught.value).startswith(f"{file}: {why}")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'h1000' is not known; b200, .*vera-rubin-nvl72 are"):
        Device.load("h1000")


@pytest.mark.parametrize(
    ("name", "figure", "published"),
    [
        ("h100", "bandwidth", 3.35e12),
        ("h200", "memory", 141e9),
        ("b200", "fp4", 9e15),
        ("b300", "cost", 2.34 / 3600),
        ("gb200-nvl72", "power", 2100),
        ("gb300-nvl72", "rent", 3.96 / 3600),
        ("vera-rubin-nvl72", "fp4", 35e15),
        ("vera-rubin-nvl72", "scale_out", 200e9),
        ("groq-3-lpx", "fp8", 1.2e15),
        ("groq-3-lpx", "hop", 350e-9),
        ("trainium2", "memory", 103.08e9),
        ("trainium3", "memory", 154.6e9),
        ("trainium3", "scale_out", 28_800e9 / 8 / 144),
        ("cerebras-cs-3", "bandwidth", 21e15),
        ("cerebras-cs-3", "cost", 41.96 / 3600),
    ],
)
def test_figures_are_those_published_in_base_units(name: str, figure: str, published: float) -> None:
    known = Device.load(name).figures[figure]

    assert known.unknown is None
    assert known.si() == pytest.approx(published, rel=1e-3)


def test_256_lpus_are_the_rack_that_nvidia_publishes() -> None:
    lpu = numbers("groq-3-lpx")
    units = lpu.get("rack_units")

    assert units == lpu.get("scale_up_units") == 256
    assert units * lpu.get("memory") == pytest.approx(128e9)
    assert units * lpu.get("bandwidth") == pytest.approx(40e15, rel=0.05)
    assert units * lpu.get("fp8") == pytest.approx(315e15, rel=0.03)
    assert units * 2 * lpu.get("scale_up") == pytest.approx(640e12)  # both directions


def test_72_rubins_are_the_rack_that_nvidia_publishes() -> None:
    gpu = numbers("vera-rubin-nvl72")
    units = gpu.get("rack_units")

    assert units == gpu.get("scale_up_units") == 72
    assert units * gpu.get("memory") == pytest.approx(20.7e12, rel=0.01)
    assert units * gpu.get("bandwidth") == pytest.approx(1580e12, rel=0.01)
    assert units * 2 * gpu.get("scale_up") == pytest.approx(260e12, rel=0.01)
    assert units * 2 * gpu.get("scale_out") == pytest.approx(28.8e12, rel=0.01)


@pytest.mark.parametrize(("unit", "rack"), [("power", "rack_power"), ("price", "rack_price")], ids=["power", "price"])
def test_what_nobody_said_of_an_lpu_is_its_share_of_the_rack(unit: str, rack: str) -> None:
    assert unit not in Device.load("groq-3-lpx").figures
    for assumed in Device.load("groq-3-lpx").figures[rack].bounds:
        lpu = numbers("groq-3-lpx", **{rack: assumed})
        assert 256 * lpu.get(unit) == lpu.get(rack)
        assert rack in lpu.unknown


def test_the_range_of_rubins_power_is_that_of_its_rack() -> None:
    device = Device.load("vera-rubin-nvl72")
    assert device.power and device.rack_power

    for share, whole in zip(device.power.bounds, device.rack_power.bounds, strict=True):
        assert 72 * share == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(("name", "before"), [("b300", "b200"), ("gb300-nvl72", "gb200-nvl72")])
def test_placeholders_of_cost_are_what_they_say_and_say_so(name: str, before: str) -> None:
    for figure in ("cost", "rent"):
        assert numbers(name).get(figure) == pytest.approx(1.2 * numbers(before).get(figure))
    assert any("placeholder" in note for note in Device.load(name).notes)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("groq-3-lpx", "cerebras-cs-3")])
def test_a_unit_takes_no_less_than_its_chip_and_a_rack_no_less_than_its_chips(name: str) -> None:
    figures = Device.load(name).figures
    least = {key: figure.si(figure.bounds[0]) for key, figure in figures.items()}

    assert least["power"] >= least["chip_power"]
    if "rack_power" in figures:
        assert least["rack_power"] >= least["rack_units"] * least["chip_power"]


@pytest.mark.parametrize(
    ("name", "seconds"), [("groq-3-lpx", 1.0e-6), ("vera-rubin-nvl72", 24e-6), ("gb300-nvl72", 66e-6)]
)
def test_reading_a_token_of_v4_pro_from_one_rack_takes_what_is_known_by_hand(name: str, seconds: float) -> None:
    """38.2 GB, the weights that one token of DeepSeek-V4-Pro touches."""
    rack = numbers(name)

    assert 38.2e9 / (rack.get("rack_units") * rack.get("bandwidth")) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("figure", ["rack_power", "rack_price", "bridge"])
def test_what_nvidia_does_not_say_of_lpx_is_unknown(figure: str) -> None:
    unknown = Device.load("groq-3-lpx").figures[figure]

    assert unknown.value is None
    assert unknown.bounds[0] < unknown.bounds[1]
    assert any(word in unknown.source.lower() for word in ("not published", "nothing is published"))


def test_a_range_has_its_geometric_middle_and_a_value_has_itself() -> None:
    bridge = Device.load("groq-3-lpx").figures["bridge"]

    assert bridge.bounds == (2, 10)
    assert bridge.typical == pytest.approx(math.sqrt(20))
    assert bridge.si() == pytest.approx(math.sqrt(20) * 1e-6)
    assert bridge.si(5) == pytest.approx(5e-6)
    assert Device.load("h100").bandwidth.typical == 3.35
    assert Device.load("h100").bandwidth.bounds == (3.35, 3.35)


@pytest.mark.parametrize(
    ("unit", "base"), [("GiB", 1_073_741_824), ("PB/s", 1e15), ("us", 1e-6), ("kW", 1000), ("$", 1), ("$/h", 1 / 3600)]
)
def test_units_are_bytes_seconds_watts_and_dollars(unit: str, base: float) -> None:
    said = Figure(value=2, unit=unit, label=Label.VENDOR, source="on its label", date=date(2026, 11, 24))

    assert said.si() == pytest.approx(2 * base)


def test_numbers_take_what_is_assumed_and_remember_what_was_asked() -> None:
    lpu = numbers("groq-3-lpx", bridge=5, rack_power=160)

    assert lpu.get("bridge") == pytest.approx(5e-6)
    assert lpu.get("rack_power") == pytest.approx(160e3)
    assert lpu.get("hop") == pytest.approx(350e-9)
    assert lpu.get("power") == pytest.approx(160e3 / 256)
    assert list(lpu.used) == ["bridge", "rack_power", "hop", "rack_units"]
    assert list(lpu.unknown) == ["bridge", "rack_power"]
    assert lpu.has("price") and "rack_price" not in lpu.used


def test_an_assumption_may_replace_what_is_known() -> None:
    assert numbers("h100", power=0.8).get("power") == pytest.approx(800)


def test_two_sets_of_numbers_do_not_share_what_was_asked() -> None:
    asked, other = numbers("h100"), numbers("h100")
    asked.get("memory")

    assert not other.used


def test_an_assumption_about_no_figure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"NVIDIA Groq 3 LPX has no figure 'bridges'; it has memory, .*rack_price"):
        numbers("groq-3-lpx", bridges=5)
    with pytest.raises(ConfigError, match="has no figure 'fp4'"):
        numbers("groq-3-lpx", fp4=2)


@pytest.mark.parametrize("value", [0, -5])
def test_an_assumption_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"NVIDIA Groq 3 LPX\.bridge: {value} is not positive"):
        numbers("groq-3-lpx", bridge=value)


def test_a_figure_that_a_device_lacks_is_not_made_up() -> None:
    h100 = numbers("h100")

    assert not h100.has("fp4")
    with pytest.raises(ConfigError, match="NVIDIA H100 SXM has no figure for fp4"):
        h100.get("fp4")
    assert not h100.used


@pytest.mark.parametrize(
    ("name", "stored", "computed"),
    [
        ("groq-3-lpx", "fp4", "fp8"),
        ("groq-3-lpx", "fp8", "fp8"),
        ("h100", "fp4", "fp8"),
        ("b200", "fp4", "fp4"),
        ("b200", "bf16", "bf16"),
        ("trainium2", "fp4", "fp8"),
        ("cerebras-cs-3", "fp4", "bf16"),
        ("cerebras-cs-3", "fp8", "bf16"),
    ],
)
def test_operands_are_multiplied_in_the_narrowest_that_holds_them(name: str, stored: str, computed: str) -> None:
    assert Device.load(name).arithmetic(stored) == computed


def test_operands_wider_than_all_arithmetic_are_refused() -> None:
    with pytest.raises(ConfigError, match="NVIDIA Groq 3 LPX has no arithmetic for bf16"):
        Device.load("groq-3-lpx").arithmetic("bf16")
