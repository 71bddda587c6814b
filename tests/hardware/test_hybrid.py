"""Two devices that make one step, against what can be reckoned by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from hardware.device import Device, Numbers
from hardware.hybrid import Bridge, ExternalDrafter, Hybrid, ceiling
from hardware.model import Model
from hardware.placement import Placement
from hardware.roofline import DraftShape, Losses, Roofline, Work

PRO = Model.of("deepseek-v4-pro")
RUBIN, LPX = Numbers(Device.load("vera-rubin-nvl72")), Numbers(Device.load("groq-3-lpx"))


def on(numbers: Numbers, units: int, attention: str = "data") -> Roofline:
    place = Placement(units, attention=attention)  # type: ignore[arg-type]
    return Roofline(PRO, numbers, place, Losses(), DraftShape.mtp(PRO, 1))


def hybrid(bridge: Bridge, micro_batches: int = 4) -> Hybrid:
    return Hybrid(on(RUBIN, 72), on(LPX, 13 * 256, "tensor"), bridge, micro_batches)


class Free(Roofline):
    """A machine that takes no time."""

    def _seconds(self, operations: float, size: float, precision: str | None = None) -> float:
        return 0.0

    def message_seconds(self, size: float) -> float:
        return 0.0


@pytest.mark.parametrize(("microseconds", "ceiling_tok_s"), [(2, 4098), (5, 1639), (10, 820)])
def test_the_hops_alone_are_the_ceiling(microseconds: float, ceiling_tok_s: float) -> None:
    """V4-Pro has 61 layers; of one request no micro-batch hides anything."""
    free = Free(PRO, RUBIN, Placement(1), Losses())
    times = Hybrid(free, free, Bridge(microseconds * 1e-6, 1e30))

    assert 1 / times.verify_seconds(1, 1, 1000) == pytest.approx(ceiling_tok_s, rel=1e-3)
    assert ceiling(61, microseconds * 1e-6) == pytest.approx(ceiling_tok_s, rel=1e-3)


@given(st.integers(1, 512), st.integers(1, 6), st.integers(1, 100_000))
def test_a_longer_hop_is_never_faster_and_micro_batches_never_slower(requests: int, each: int, context: int) -> None:
    def seconds(hop: float, micro_batches: int) -> float:
        return hybrid(Bridge(hop, 1e12), micro_batches).verify_seconds(requests, requests * each, context)

    assert seconds(1e-6, 4) <= seconds(5e-6, 4)
    assert seconds(5e-6, 4) <= seconds(5e-6, 1)


def test_without_a_way_between_them_each_side_does_its_part() -> None:
    times = hybrid(Bridge(0.0, 1e30), micro_batches=1)
    apart = replace(times, bridge=Bridge(1e-3, 1e30))

    assert apart.verify_seconds(8, 8, 1000) - times.verify_seconds(8, 8, 1000) == pytest.approx(61 * 2e-3)
    gpu, work = on(RUBIN, 72), Work(8, 8, 1000)
    attention = sum(n * gpu.attention_seconds(kind, work) for kind, n in PRO.attentions.items())
    assert times.verify_seconds(8, 8, 1000) > attention + gpu.head_seconds(8)


def test_the_bridge_is_the_devices_and_unknown() -> None:
    numbers = Numbers(Device.load("groq-3-lpx"), {"bridge": 3.0})
    bridge = Bridge.of(numbers, 256)

    assert bridge.seconds == pytest.approx(3e-6)
    assert set(numbers.unknown) == {"bridge", "scale_out"}


def test_drafts_cross_over_and_come_back() -> None:
    target, drafter = on(RUBIN, 72), on(LPX, 256, "tensor")
    times = ExternalDrafter(target, drafter, Bridge(1e-4, 1e30), tap_bytes=3 * 7168 * 2)

    assert times.verify_seconds(8, 16, 1000) == target.verify_seconds(8, 16, 1000)
    assert times.draft_seconds(8, 1000) == pytest.approx(2e-4 + drafter.draft_seconds(8, 1000))


def test_halves_of_two_models_are_refused() -> None:
    flash = Model.of("deepseek-v4-flash")
    other = Roofline(flash, LPX, Placement(512, attention="tensor"), Losses())

    with pytest.raises(ConfigError, match="attention of deepseek-v4-pro and feed-forward of deepseek-v4-flash"):
        Hybrid(on(RUBIN, 72), other, Bridge(1e-6, 1e12))
    with pytest.raises(ConfigError, match="0 micro-batches"):
        hybrid(Bridge(1e-6, 1e12), 0)
