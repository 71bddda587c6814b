from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decode.profile import profiled
from engine.config import Config, DecodeConfig, PrefillConfig
from engine.errors import ConfigError
from engine.pages import CacheLayout, Entry
from engine.steptime import ProfiledTimes
from local import Builder, Pair
from local.page_budget import num_pages
from tests.drafters import save_random_drafter
from tests.local.conftest import MakeRig
from tests.local.rig import config
from tests.local.test_speculation import pair_config

CPU = torch.device("cpu")
LAYOUT = CacheLayout.of(
    [
        Entry(layer=0, name="k", shape=(32,), dtype=torch.float32),
        Entry(layer=1, name="k", shape=(32,), dtype=torch.float32, window=70),
    ],
    64,
)
FULL, SLIDING = LAYOUT.groups["full"], LAYOUT.groups["window70"]


@pytest.mark.parametrize("cache_bytes", [100_000, 1_000_000, 7_654_321])
def test_pages_use_the_bytes_they_were_given_and_no_more(cache_bytes: int) -> None:
    counts = num_pages(LAYOUT, DecodeConfig(cache_bytes=cache_bytes, max_requests=4), CPU, step_tokens=1)

    used = sum((counts[name] + 1) * group.page_bytes for name, group in LAYOUT.groups.items())
    assert cache_bytes - FULL.page_bytes - SLIDING.page_bytes < used <= cache_bytes


def test_a_window_group_never_gets_more_than_all_requests_can_hold() -> None:
    counts = num_pages(LAYOUT, PrefillConfig(cache_bytes=10**8, max_requests=3), CPU, step_tokens=64)

    assert counts["window70"] == 3 * SLIDING.peak_pages(10**6, 64)
    assert counts["full"] > 1000


def test_a_share_of_free_memory_is_used_without_cache_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.page_budget.free_memory", lambda device: 10_000_000)

    taken = num_pages(LAYOUT, DecodeConfig(cache_fraction=0.25), CPU, 1)

    assert taken == num_pages(LAYOUT, DecodeConfig(cache_bytes=2_500_000), CPU, 1)


def test_more_pages_than_memory_are_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.page_budget.free_memory", lambda device: 2**30)

    with pytest.raises(ConfigError, match=r"cache_bytes: 2\.00 GiB of pages, 1\.00 GiB free on cpu"):
        num_pages(LAYOUT, DecodeConfig(cache_bytes=2 * 2**30), CPU, 1)


def test_too_few_pages_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache_bytes: holds .* at least 2 are needed"):
        num_pages(LAYOUT, DecodeConfig(cache_bytes=3 * FULL.page_bytes), CPU, 1)


@pytest.mark.parametrize(("device", "says"), [("tpu9000", "is not known"), ("cuda", "torch sees no GPU")])
def test_a_missing_device_is_named(qwen3: Path, device: str, says: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    settings = Config.parse({"model": {"path": qwen3}, "decode": {"default": {"device": device}}})

    with pytest.raises(ConfigError, match=f"device: .*{device}.* {says}|{says}"):
        Builder(settings, settings.decode["default"])


def test_each_pool_has_the_pages_of_its_own_section(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"cache_bytes": 4_000_000}, decode={"cache_bytes": 900_000})

    assert rig.prefiller.stats().pages["full"].total > 3 * rig.decoder.stats().pages["full"].total


def test_a_model_can_be_shared_and_its_fingerprint_with_it(qwen3: Path) -> None:
    settings = config(qwen3)
    first = Builder(settings, settings.prefill)
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"page_tokens": 32})})

    second = Builder(other, other.decode["default"], first.model)

    assert second.model is first.model
    differ = {key for key, value in first.fingerprint.items() if second.fingerprint[key] != value}
    assert differ == {"layout"}
    assert replace(second.facts, fingerprint={}, page_tokens=64, page_bytes={}) == replace(
        first.facts, fingerprint={}, page_bytes={}
    )


@dataclass
class Profiler:
    """Builds decoders of one configuration and counts how often step times were measured for them."""

    config: Config
    monkeypatch: pytest.MonkeyPatch
    measured: int = 0

    def build(self, **decode: object) -> ProfiledTimes:
        """The table that the planner of a new decoder has."""
        section = self.config.decode["default"].model_copy(update=decode)
        settings = self.config.model_copy(update={"decode": {"default": section}})
        with self.monkeypatch.context() as patch:
            patch.setattr("local.build.profiled", self._profiled)
            planner: Any = Pair(settings).decoder._planner
        times: ProfiledTimes = planner.seconds._times
        return times

    def _profiled(self, *args: Any) -> ProfiledTimes:
        self.measured += 1
        return profiled(*args)


@pytest.fixture
def profiler(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiler:
    drafter = save_random_drafter(qwen3, tmp_path / "drafter")
    decode = {"step_times": tmp_path / "times", "max_requests": 2}
    return Profiler(pair_config(qwen3, drafter, {**decode, "planner": "causal"}), monkeypatch)


def test_step_times_are_measured_once_for_the_same_setup(profiler: Profiler) -> None:
    first = profiler.build()

    assert profiler.build(planner="lagged", read_timeout_seconds=9.0) == first
    assert profiler.measured == 1
    assert {"target.weights", "drafter.weights", "device", "dtype", "threads", "max_requests"} <= first.key.keys()


@pytest.mark.parametrize("change", ["max_requests", "drafter", "threads", "target"])
def test_step_times_of_another_setup_are_not_used(profiler: Profiler, change: str, qwen3: Path, tmp_path: Path) -> None:
    profiler.build()
    model = profiler.config.model
    if change == "max_requests":
        profiler.build(max_requests=3)
    elif change == "threads":
        profiler.monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
        profiler.build()
    else:
        changed = {"drafter": save_random_drafter(qwen3, tmp_path / "other", seed=1)} if change == "drafter" else {}
        model = model.model_copy(update=changed or {"page_tokens": 32})
        profiler.config = profiler.config.model_copy(update={"model": model})
        profiler.build()

    assert profiler.measured == 2
    assert len([*(tmp_path / "times").iterdir()]) == 2


def test_without_a_directory_step_times_are_measured_at_every_start(profiler: Profiler) -> None:
    profiler.build(step_times=None)
    profiler.build(step_times=None)

    assert profiler.measured == 2


def test_a_table_that_cannot_be_read_is_logged_and_measured_anew(
    profiler: Profiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler.build()
    (file,) = (tmp_path / "times").iterdir()
    file.write_text('{"key": ')

    times = profiler.build()

    assert profiler.measured == 2
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(f"step times are measured again: {file} holds no table")
    assert ProfiledTimes.load(file, times.key) == times


def test_a_directory_that_cannot_be_written_is_logged(
    profiler: Profiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "times").write_text("a file")

    profiler.build()

    assert profiler.measured == 1
    assert any("decode.POOL.step_times" in record.message for record in caplog.records)
