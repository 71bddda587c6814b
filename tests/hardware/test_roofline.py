"""Step times from operations and bytes: limits that can be reckoned by hand, monotony, and fits that find what was
put in."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from hardware.device import Device, Numbers
from hardware.fit import MeasuredStep, fitted
from hardware.model import STORED, Model
from hardware.placement import MemoryFit, Placement, fewest
from hardware.roofline import DraftShape, Losses, Roofline

FLASH, QWEN = Model.of("deepseek-v4-flash"), Model.of("qwen3-8b")
H200, B200, LPX = (Device.load(name) for name in ("h200", "b200", "groq-3-lpx"))
WORK = st.tuples(st.integers(1, 512), st.integers(1, 6), st.integers(1, 200_000))


def roofline(
    model: Model, device: Device, units: int = 1, losses: Losses | None = None, **placement: object
) -> Roofline:
    place = Placement(units, **placement)  # type: ignore[arg-type]
    return Roofline(model, Numbers(device), place, losses or Losses(), DraftShape.mtp(model, 1))


def faster(device: Device, name: str, factor: float) -> Device:
    figure = device.figures[name]
    assert figure.value is not None
    return device.model_copy(update={name: figure.model_copy(update={"value": figure.value * factor})})


def test_one_token_on_one_gpu_is_its_bytes_over_the_bandwidth() -> None:
    seconds = roofline(QWEN, H200).verify_seconds(1, 1, 1000)

    assert seconds == pytest.approx((QWEN.touched_bytes(1) + QWEN.read_bytes(1000)) / 4.8e12, rel=1e-9)


def test_many_tokens_are_their_operations() -> None:
    """A long prompt: nothing but arithmetic."""
    seconds = roofline(QWEN, H200).prefill_seconds(1, 8192, 0)

    assert seconds == pytest.approx(8192 * 2 * (QWEN.common + QWEN.head) / 0.989e15, rel=0.01)


def test_the_published_floor_of_eight_b200() -> None:
    """V4-Flash's active bytes over the bandwidth of eight B200: 0.167 ms; with each unit reading all of attention, as
    it must when requests are spread, more."""
    assert FLASH.touched_bytes(1) / (8 * 8e12) == pytest.approx(167e-6, rel=0.02)
    cut = roofline(FLASH, faster(B200, "scale_up", 1e6), 8, attention="tensor")
    bare = replace(cut, numbers=Numbers(cut.numbers.device, {"hop": 1e-9}))

    assert bare.verify_seconds(1, 1, 1) == pytest.approx(167e-6, rel=0.05)


@given(WORK, st.sampled_from(["bandwidth", "bf16", "fp8", "scale_up"]), st.sampled_from([1, 4, 8]))
def test_a_faster_device_is_never_slower(work: tuple[int, int, int], figure: str, units: int) -> None:
    requests, each, context = work
    slow, fast = roofline(FLASH, H200, units), roofline(FLASH, faster(H200, figure, 2), units)

    assert fast.verify_seconds(requests, requests * each, context) <= slow.verify_seconds(
        requests, requests * each, context
    )


@given(WORK, st.sampled_from([(1, "data"), (8, "data"), (8, "tensor")]))
def test_more_work_takes_longer(work: tuple[int, int, int], place: tuple[int, str]) -> None:
    requests, each, context = work
    times = roofline(FLASH, H200, place[0], attention=place[1])
    seconds = times.verify_seconds(requests, requests * each, context)

    assert seconds <= times.verify_seconds(requests, requests * (each + 1), context)
    assert seconds <= times.verify_seconds(requests + 8, (requests + 8) * each, context)
    assert seconds <= times.verify_seconds(requests, requests * each, 2 * context)
    assert 0 < times.draft_seconds(requests, context) < seconds


def test_layer_latency_is_what_is_left_at_batch_one() -> None:
    free = roofline(FLASH, B200, 8)
    held = roofline(FLASH, B200, 8, Losses(layer_seconds=1e-5, step_seconds=2e-3))

    assert held.verify_seconds(1, 2, 4096) - free.verify_seconds(1, 2, 4096) == pytest.approx(43 * 1e-5 + 2e-3)


def test_a_latent_is_replicated_under_tensor_parallelism() -> None:
    """Every unit holds all of it; K and V heads are cut."""
    latent = Model.of("deepseek-v3.2")
    for model, parts in ((latent, 1), (QWEN, 8)):
        whole = MemoryFit(model, Placement(1), 1e13).request_bytes(10_000)
        assert MemoryFit(model, Placement(8, attention="tensor"), 1e13).request_bytes(10_000) == whole / parts
        assert MemoryFit(model, Placement(8, attention="data"), 1e13).request_bytes(10_000) == whole / 8


def test_a_cache_cut_by_tokens_is_held_once_and_takes_one_sum_more() -> None:
    """Weights are cut as by heads; of a latent each unit has its part of the tokens."""
    by_heads, by_tokens = Placement(8, attention="tensor"), Placement(8, attention="context")
    held = [MemoryFit(FLASH, place, 192e9).request_bytes(100_000) for place in (by_heads, by_tokens)]
    times = [roofline(FLASH, B200, 8, attention=attention) for attention in ("tensor", "context")]

    assert MemoryFit(FLASH, by_tokens, 192e9).weights_bytes == MemoryFit(FLASH, by_heads, 192e9).weights_bytes
    assert held[0] == pytest.approx(8 * held[1])
    summed = len(FLASH.layers) * times[0]._summed_seconds(1)
    assert times[1].verify_seconds(1, 1, 1) == pytest.approx(times[0].verify_seconds(1, 1, 1) + summed, rel=0.01)
    assert times[1].verify_seconds(64, 64, 1_000_000) < times[0].verify_seconds(64, 64, 1_000_000)


def test_the_smallest_replica_is_whole_racks_of_lpus_and_stages_of_wafers() -> None:
    rack, wafer = Numbers(LPX), Numbers(Device.load("cerebras-cs-3"))

    for place, numbers, more in ((fewest(FLASH, rack, "context"), rack, 256), (fewest(FLASH, wafer, "data"), wafer, 1)):
        assert place.all_units % more == 0
        assert MemoryFit(FLASH, place, numbers.get("memory")).room > 0
        less = replace(place, stages=place.stages - 1) if more == 1 else replace(place, units=place.units - more)
        assert MemoryFit(FLASH, less, numbers.get("memory")).room <= 0


def test_what_does_not_fit_says_by_how_much() -> None:
    rack = MemoryFit(FLASH, Placement(256, attention="tensor"), Numbers(LPX).get("memory"), spare=0.0)

    with pytest.raises(
        ConfigError, match=r"deepseek-v4-flash does not fit one rack.* 256 units .*2[78]\.\d GB too much"
    ):
        rack.check("one rack")
    assert rack.weights_bytes * 256 == pytest.approx(FLASH.weight_bytes, rel=1e-9)
    MemoryFit(FLASH, Placement(256, stages=2, attention="tensor"), Numbers(LPX).get("memory"), spare=0.0).check(
        "two racks"
    )


def test_stages_share_layers_and_all_requests_pass_through_all() -> None:
    one, two = (roofline(QWEN, H200, 1, stages=stages) for stages in (1, 2))

    assert two.verify_seconds(1, 1, 1000) > one.verify_seconds(1, 1, 1000)  # the same layers, and a message
    assert two.verify_seconds(64, 64, 1000) < one.verify_seconds(64, 64, 1000)  # half the requests at each


def test_narrow_weights_are_computed_in_what_the_device_has() -> None:
    """LPX has no fp4 arithmetic: stored in four bits, multiplied in eight."""
    times = roofline(FLASH, LPX, 512, attention="tensor")
    times.verify_seconds(1, 1, 100)

    assert "fp8" in times.numbers.used and "fp4" not in times.numbers.used
    with pytest.raises(ConfigError, match="no arithmetic for bf16"):
        roofline(QWEN, LPX, 512, attention="tensor").verify_seconds(1, 1, 100)


def test_a_fit_finds_the_losses_that_were_put_in() -> None:
    true = Losses(compute=0.4, memory=0.7, layer_seconds=40e-6, step_seconds=1e-3)
    times = roofline(FLASH, B200, 8, true)
    counts = (1, 8, 64, 256, 1024, 4096)
    steps = [MeasuredStep(n, 2 * n, 4096, times.verify_seconds(n, 2 * n, 4096)) for n in counts]

    found = fitted(lambda losses: roofline(FLASH, B200, 8, losses), steps, "made up", layers=43)

    assert found.worst < 0.02
    asked = roofline(FLASH, B200, 8, found.losses)
    for requests in (32, 512, 2048):
        seconds = times.verify_seconds(requests, 4 * requests, 4096)
        assert asked.verify_seconds(requests, 4 * requests, 4096) == pytest.approx(seconds, rel=0.1)


def test_two_points_are_needed() -> None:
    with pytest.raises(ValueError, match="too few"):
        fitted(lambda losses: roofline(FLASH, B200, 8, losses), [MeasuredStep(1, 1, 1, 1.0)], "", layers=43)


def test_what_was_used_is_known() -> None:
    times = roofline(FLASH, B200, 8)
    times.verify_seconds(8, 16, 1000)

    assert set(times.numbers.unknown) == {"hop"}
    assert {"bandwidth", "fp4", "fp8", "scale_up"} <= set(times.numbers.used)


def test_stored_bytes() -> None:
    assert STORED["fp4"] == 4.25 / 8
