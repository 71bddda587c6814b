"""Temperatures against known ones, errors against plain loops, and the way from recorded steps to the engine."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli import app
from decode.record import read
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.drafters.calibration import FILE
from engine.drafters.load import load_dspark
from engine.errors import CheckpointRefused, ConfigError
from engine.models import LoadedModel, load_model
from engine.text import Text
from engine.types import Request, Sampling, StopRules
from local import Pair
from train.drafter.calibrate import ConfidenceRecords, calibrate, fitted
from train.drafter.confidence import AREA_BINS, BINS, auc, ece

BLOCK = 3


def overconfident(temperatures: list[float], count: int = 40_000) -> ConfidenceRecords:
    """Drafts whose logits are too far from 0 by these factors; all are verified."""
    rng = np.random.default_rng(5)
    logit = rng.normal(0.5, 1.0, (count, BLOCK))
    survives = rng.random((count, BLOCK)) < 1 / (1 + np.exp(-logit))
    said = 1 / (1 + np.exp(-logit * np.array(temperatures)))
    return ConfidenceRecords(said, np.full(count, BLOCK), survives.cumprod(axis=1).sum(axis=1))


def test_temperatures_that_were_put_in_come_out() -> None:
    fit = fitted(overconfident([2.0, 0.5, 1.5]))

    assert fit.temperatures == pytest.approx([2.0, 0.5, 1.5], rel=0.15)
    assert max(fit.after.ece) < 0.012 < min(fit.before.ece)
    assert all(after >= before - 0.01 for before, after in zip(fit.before.auc, fit.after.auc, strict=True))


def test_a_place_with_hardly_any_drafts_is_left_alone() -> None:
    pairs = overconfident([2.0, 2.0, 2.0], count=1000)
    pairs = replace(pairs, count_N=np.where(np.arange(1000) < 50, BLOCK, 2))

    fit = fitted(pairs)

    assert fit.temperatures[2] == 1.0
    assert fit.drafts == [1000, 1000, 50]


chances = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=60)


@given(chances)
def test_error_and_area_are_those_of_plain_loops(rows: list[tuple[float, bool]]) -> None:
    said, came = np.array([p for p, _ in rows]), np.array([s for _, s in rows])

    error = 0.0
    for b in range(BINS):
        inside = [(p, s) for p, s in rows if min(int(p * BINS), BINS - 1) == b]
        if inside:
            error += abs(sum(p for p, _ in inside) - sum(s for _, s in inside)) / len(rows)
    assert ece(said, came) == pytest.approx(error, abs=1e-9)

    bins = [(min(int(p * AREA_BINS), AREA_BINS - 1), s) for p, s in rows]
    pairs = [(a, b) for a, s in bins if s for b, t in bins if not t]
    area = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else 0.5
    assert auc(said, came) == pytest.approx(area)


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(SHIPPED_MODEL, torch.float32, torch.device("cpu"))


def uncalibrated(folder: Path) -> Path:
    """Copy the shipped drafter without its calibration."""
    return Path(shutil.copytree(SHIPPED_DRAFTER, folder / "drafter", ignore=shutil.ignore_patterns(FILE)))


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    return uncalibrated(tmp_path)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded steps of the uncalibrated drafter."""
    folder = tmp_path_factory.mktemp("recorded")
    return recorded(uncalibrated(folder), folder / "steps")


def recorded(drafter: Path, folder: Path, requests: int = 16, **decode: Any) -> Path:
    """Record the steps of a few answers."""
    section = {"cache_bytes": "64MiB", "planner": "fixed", "fixed_drafts": 7, "record": folder, **decode}
    content = {"model": {"drafter": drafter}, "prefill": {"cache_bytes": "64MiB"}, "decode": {"default": section}}
    pair = Pair(Config.parse(content))
    text = Text.load(SHIPPED_MODEL).encode(inspect.getsource(json.decoder))
    stop = StopRules(max_tokens=60, ignore_eos=True)
    pair.generate(
        [
            Request(id=str(at), prompt=tuple(text[at : at + 60]), sampling=Sampling(), stop=stop)
            for at in range(0, 100 * requests, 100)
        ]
    )
    pair.decoder.close()
    return folder


def test_from_recorded_steps_to_the_confidences_of_the_engine(
    drafter: Path, target: LoadedModel, steps: Path, tmp_path: Path
) -> None:
    assert load_dspark(drafter, target).temperatures is None

    fit = calibrate(steps, drafter)

    assert sum(fit.after.ece) < sum(fit.before.ece)
    assert load_dspark(drafter, target).temperatures == tuple(fit.temperatures)
    again = calibrate(recorded(drafter, tmp_path / "in force"), drafter)
    assert again.temperatures == pytest.approx(fit.temperatures, rel=0.05), "what was in force is taken out first"


def test_confidences_are_divided_by_their_temperatures(drafter: Path, target: LoadedModel, tmp_path: Path) -> None:
    plain = recorded(drafter, tmp_path / "plain")
    weights = load_dspark(drafter, target).fingerprint["weights"]
    temperatures = [0.5, 2.0, 3.0, 1.0, 1.5, 0.7, 4.0]
    content = {"format": "sparkpool-calibration-1", "weights": weights, "temperatures": temperatures}
    (drafter / FILE).write_text(json.dumps(content))
    warm = recorded(drafter, tmp_path / "warm")

    (before,), (after,) = (list(folder.glob("*.jsonl")) for folder in (plain, warm))
    header, scaled_steps = read(after)
    assert header.temperatures == temperatures
    compared = 0
    for one, other in zip(read(before)[1], scaled_steps, strict=True):
        assert dict(zip(one.requests, one.lengths, strict=True)) == dict(
            zip(other.requests, other.lengths, strict=True)
        )
        rows = dict(zip(other.requests, other.confidence, strict=True))  # requests of one moment may swap places
        for raw, scaled in ((raw, rows[name]) for name, raw in zip(one.requests, one.confidence, strict=True)):
            for p, q, t in zip(raw, scaled, temperatures, strict=False):
                if 0.001 < p < 0.999:
                    assert q == pytest.approx(1 / (1 + ((1 - p) / p) ** (1 / t)), abs=0.01)
                    compared += 1
    assert compared > 1000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "0123"}, "made for weights 0123, this drafter has"),
        ({"temperatures": [1.0, 2.0]}, "2 temperatures for a block of 7"),
        ({"temperatures": [1.0] * 6 + [0.0]}, r"temperatures\.6"),
        ({"format": "other"}, "format"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    drafter: Path, target: LoadedModel, change: dict[str, object], reason: str
) -> None:
    weights = load_dspark(drafter, target).fingerprint["weights"]
    content = {"format": "sparkpool-calibration-1", "weights": weights, "temperatures": [1.0] * 7}
    (drafter / FILE).write_text(json.dumps(content | change))

    with pytest.raises(CheckpointRefused, match=reason):
        load_dspark(drafter, target)


def test_what_cannot_be_calibrated_is_named(drafter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no recorded steps"):
        calibrate(tmp_path, drafter)
    synthetic = recorded(drafter, tmp_path / "synthetic", requests=1, synthetic_acceptance=[0.9])
    with pytest.raises(ConfigError, match="synthetic_acceptance"):
        calibrate(synthetic, drafter)
    none = recorded(drafter, tmp_path / "none", requests=1, fixed_drafts=0)
    with pytest.raises(ConfigError, match="no step in it verified a draft"):
        calibrate(none, drafter)
    assert not (drafter / FILE).exists()


def test_the_command_prints_each_place_and_says_what_is_wrong(drafter: Path, steps: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["calibrate", str(steps), "--drafter", str(drafter)])
    failed = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--drafter", str(drafter)])

    assert done.exit_code == 0
    assert "temperature" in done.output
    assert len(json.loads((drafter / FILE).read_text())["temperatures"]) == 7
    assert failed.exit_code != 0
    assert "holds no recorded steps" in failed.output
