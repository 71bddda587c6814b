"""Kept features are those of this target and this text, whole, or an error says what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.errors import ConfigError
from tests.train.drafter.test_trainer import random_text
from train.drafter import features
from train.drafter.features import CachedFeatures, OnlineFeatures
from train.drafter.target import FrozenTarget

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_SEQUENCES", 5)
    monkeypatch.setattr(features, "BATCH_SEQUENCES", 2)


@pytest.fixture
def target(deepseek_v3: Path) -> FrozenTarget:
    return FrozenTarget.load(deepseek_v3, (0, 1), torch.float32, CPU)


def cached(target: FrozenTarget, folder: Path, dtype: torch.dtype = torch.float32) -> CachedFeatures:
    return CachedFeatures(target, random_text(), folder, dtype)


def prepare(one: CachedFeatures) -> list[int]:
    done: list[int] = []
    one.prepare(lambda some, total: done.append(some))
    return done


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kept_ones_equal_computed_ones(target: FrozenTarget, tmp_path: Path, dtype: torch.dtype, close: float) -> None:
    one = cached(target, tmp_path / "kept", dtype)
    prepare(one)
    numbers = [0, 4, 5, 15, 9]
    for kept, computed in zip(one.states(numbers), OnlineFeatures(target, one.text).states(numbers), strict=True):
        torch.testing.assert_close(kept, computed, atol=close, rtol=close)
    size = sum(file.stat().st_size for file in (tmp_path / "kept").glob("*.bin"))
    assert size == one.num_bytes == one.text.num_tokens * 3 * target.hidden_size * dtype.itemsize


def test_only_what_is_missing_is_computed(target: FrozenTarget, tmp_path: Path) -> None:
    """A shard that was lost, or cut in the middle, is made again; the others stay as they are."""
    prepare(cached(target, tmp_path))
    files = sorted(tmp_path.glob("*.bin"))
    before = [file.read_bytes() for file in files]
    files[1].write_bytes(before[1][: len(before[1]) // 2])
    files[3].unlink()
    (tmp_path / ".partial-features-00002.bin").write_bytes(b"of a run that was killed")
    untouched = files[0].stat().st_mtime_ns

    assert prepare(cached(target, tmp_path)) == [10, 15, 16]

    assert [file.read_bytes() for file in files] == before
    assert files[0].stat().st_mtime_ns == untouched


def test_a_shard_cut_while_training_is_named(target: FrozenTarget, tmp_path: Path) -> None:
    one = cached(target, tmp_path)
    prepare(one)
    file = tmp_path / "features-00002.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"features-00002\.bin: \d+ bytes, should be \d+: cut off"):
        one.states([11])


def test_another_target_or_text_is_refused(deepseek_v3: Path, target: FrozenTarget, tmp_path: Path) -> None:
    prepare(cached(target, tmp_path))
    taps = FrozenTarget(target.model, (1,))
    with pytest.raises(ConfigError, match=r"drafter\.target_layer_ids was \[0, 1\] .* now it is \[1\]"):
        prepare(cached(taps, tmp_path))
    other = tmp_path / "other"
    shutil.copytree(deepseek_v3, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    changed = FrozenTarget.load(other, (0, 1), torch.float32, CPU)
    with pytest.raises(ConfigError, match=r"target\.\w+ was .* when these features were computed"):
        prepare(cached(changed, tmp_path))
    with pytest.raises(ConfigError, match=r"text was"):
        prepare(CachedFeatures(target, random_text(count=15), tmp_path, torch.float32))
    with pytest.raises(ConfigError, match=r"features\.dtype was 'float32'"):
        prepare(cached(target, tmp_path, torch.bfloat16))


def test_a_disk_too_small_is_told_before_anything_is_computed(
    target: FrozenTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30 + 1000))
    with pytest.raises(ConfigError, match=r"features of \d+ tokens take .* free"):
        prepare(cached(target, tmp_path))
    assert not list(tmp_path.glob("*.bin"))


def test_a_disk_that_fills_up_loses_nothing(
    target: FrozenTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FrozenTarget.states
    calls: list[int] = []

    def full(self: FrozenTarget, tokens: list[list[int]]) -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) == 5:  # in the second shard
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, tokens)

    monkeypatch.setattr(FrozenTarget, "states", full)
    with pytest.raises(ConfigError, match=r"features-00001\.bin: No space left on device; 1 of 4 shards stay"):
        prepare(cached(target, tmp_path))
    assert [file.name for file in tmp_path.glob("*.bin")] == ["features-00000.bin"]
    assert not list(tmp_path.glob(".partial*"))
    monkeypatch.setattr(FrozenTarget, "states", whole)
    assert prepare(cached(target, tmp_path)) == [5, 10, 15, 16]
