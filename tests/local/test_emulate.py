"""An emulated decode pool: the tokens are the model's own, the time is the device's."""

from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.errors import ConfigError
from engine.types import Request
from local import Pair
from local.emulate import Emulation
from tests.local.rig import MIB, request

LPX = {"model": "deepseek-v4-flash"}


def config(path: Path, device: str = "groq-3-lpx", emulation: dict[str, Any] | None = None, **decode: Any) -> Config:
    section = {"cache_bytes": 4 * MIB, "device": device, "emulation": LPX if emulation is None else emulation, **decode}
    return Config.parse({"model": {"path": path}, "prefill": {"cache_bytes": 4 * MIB}, "decode": {"default": section}})


def seconds_of(pair: Pair, one: Request) -> float:
    last = pair.chunks[one.id][-1]
    assert last.timings is not None
    return last.timings.decode_seconds


def test_tokens_are_the_models_and_times_are_the_emulated_devices(qwen3: Path) -> None:
    """A step of V4-Flash on two racks takes about 0.1 ms; slowed down, 400 times as long."""
    one = request("a", max_tokens=9)
    plain = Pair(config(qwen3, device="cpu")).generate([one])
    slow = config(qwen3, emulation={**LPX, "time_scale": 400.0})
    pair = Pair(slow)
    told = pair.generate([one])
    step = Emulation.of(slow, "default", 0).times.verify_seconds(1, 1, one.num_tokens)

    assert told == plain
    assert step > 0.01
    assert seconds_of(pair, one) >= 8 * 0.99 * step
    stats = pair.decoder.stats()
    assert stats.identity.emulated == "groq-3-lpx, time x 400"
    assert stats.counters.overruns <= stats.counters.steps / 2
    last = pair.chunks["a"][-1].timings
    assert last is not None and last.emulated == stats.identity.emulated


def test_a_step_slower_than_the_emulated_device_is_an_overrun(qwen3: Path) -> None:
    pair = Pair(config(qwen3, emulation={**LPX, "time_scale": 1e-6}))
    one = request("a", max_tokens=9)
    pair.generate([one])
    last = pair.chunks["a"][-1].timings

    assert pair.decoder.stats().counters.overruns == pair.decoder.stats().counters.steps == 8
    assert last is not None and last.overruns == 8


def test_planners_use_the_step_times_of_the_emulated_device(qwen3: Path) -> None:
    """Routing and scaling see the rates of the emulated device."""
    settings = config(qwen3, emulation={**LPX, "time_scale": 400.0})
    pair = Pair(settings)
    pair.generate([request("a", max_tokens=5)])
    step = Emulation.of(settings, "default", 0).times.verify_seconds(1, 1, 32)

    assert pair.decoder.stats().forecast.request_rates[1] == pytest.approx(1 / step, rel=0.35)


def test_transfers_take_the_time_of_the_emulated_link(qwen3: Path) -> None:
    """The test reads one page at a thousand bytes per second."""
    settings = config(qwen3, emulation={**LPX, "link_bytes_per_second": 1e5, "link_seconds": 0.05})
    pair = Pair(settings)
    one = request("a", max_tokens=2)
    pair.generate([one])
    last = pair.chunks["a"][-1].timings

    assert last is not None and last.moved_bytes > 0
    assert last.transfer_seconds >= 0.05 + last.moved_bytes / 1e5


def test_the_fewest_units_that_hold_the_model_are_emulated(qwen3: Path) -> None:
    lpx, wafers = (
        Emulation.of(config(qwen3, device=device), "default", 0).roofline for device in ("groq-3-lpx", "cerebras-cs-3")
    )

    assert lpx.placement.units == 2 * 256  # 155 GB in racks of 128, with a tenth to spare
    assert (wafers.placement.units, wafers.placement.stages) == (1, 4)


def test_the_configured_assumptions_are_used(qwen3: Path) -> None:
    slow, fast = (
        Emulation.of(config(qwen3, emulation={**LPX, "assumed": {"bridge": us}}), "default", 0).link().latency
        for us in (10.0, 2.0)
    )

    assert (slow, fast) == (pytest.approx(1e-5), pytest.approx(2e-6))


def test_drafts_take_the_time_of_the_emulated_device(qwen3: Path) -> None:
    mtp = Emulation.of(config(qwen3).model_copy(), "default", 3)

    assert mtp.times.draft_seconds(1, 100) > 0
    assert Emulation.of(config(qwen3), "default", 0).times.draft_seconds(1, 100) == 0


@pytest.mark.parametrize(
    ("device", "emulation", "says"),
    [
        ("groq-4", {}, r"device 'groq-4' is not known; .*groq-3-lpx"),
        ("groq-3-lpx", {"assumed": {"bridges": 1.0}}, "has no figure 'bridges'"),
        ("groq-3-lpx", {"units": 256}, r"does not fit NVIDIA Groq 3 LPX, emulation\.units 256: .* GB too much"),
        ("groq-3-lpx", {"model": "deepseek-v9"}, "deepseek-v9: neither a directory"),
        ("groq-3-lpx", {"model": "qwen3-8b"}, "has no arithmetic for bf16"),
        ("cerebras-cs-3", {"link_bytes_per_second": 1.0, "attention": "data"}, ""),
    ],
    ids=["device", "figure", "fit", "model", "precision", "fine"],
)
def test_a_device_that_cannot_be_emulated_is_refused_at_start(
    qwen3: Path, device: str, emulation: dict[str, Any], says: str
) -> None:
    settings = config(qwen3, device=device, emulation={**LPX, **emulation})
    if not says:
        Pair(settings)
        return
    with pytest.raises(ConfigError, match=says):
        Pair(settings)


def test_prefill_is_not_emulated(qwen3: Path) -> None:
    content = {"model": {"path": qwen3}, "prefill": {"device": "groq-3-lpx"}}

    with pytest.raises(ConfigError, match="device: 'groq-3-lpx' is no torch device"):
        Pair(Config.parse(content))


def test_weights_may_be_narrower_on_the_emulated_device(qwen3: Path) -> None:
    settings = config(qwen3, emulation={"model": "qwen3-8b", "precision": "fp8"})

    assert Emulation.of(settings, "default", 0).roofline.model.dense == "fp8"
