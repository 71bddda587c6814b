"""`sparkpool train` from its file to a drafter that the engine loads: learns, survives a kill, says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from engine.config import SHIPPED_MODEL
from engine.errors import ConfigError
from engine.models import load_model
from tests.train.drafter.test_trainer import ROOT, environment
from train.drafter.config import TrainConfig
from train.drafter.evaluation import Evaluation, Setting
from train.drafter.run import DrafterRun, metrics
from train.drafter.shape import drafter_config, export_drafter

PROMPTS = 24


def config_file(folder: Path, target: Path, **training: object) -> Path:
    """A drafter for a small random target."""
    lines = [json.dumps({"prompt_token_ids": [(7 * i + j * j) % 250 for j in range(3, 9)]}) for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    content: dict[str, Any] = {
        "target": {"path": str(target)},
        "out": "drafter",
        "work": "work",
        "drafter": {"target_layer_ids": [0, 1], "block_size": 4, "mask_token_id": 7, "markov_rank": 16},
        "text": {"prompts": "prompts.jsonl", "sequences": 48, "tokens": 48, "ignore_eos": True, "temperatures": [0, 1]},
        "training": {
            "steps": 12,
            "sequences": 8,
            "anchors": 16,
            "checkpoint_steps": 4,
            "dtype": "float32",
            "optimizer": "muon",
            "rate": 0.02,
            "markov_rate": 0.03,
            "vector_rate": 0.002,
            **training,
        },
    }
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def change(file: Path, section: str, **keys: object) -> TrainConfig:
    """Change `file` and load it."""
    content = yaml.safe_load(file.read_text())
    content[section] |= keys
    file.write_text(yaml.safe_dump(content))
    return TrainConfig.load(file)


@pytest.fixture(scope="module")
def finished(deepseek_v3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a finished run, whose output folder held an old calibration when it began."""
    folder = tmp_path_factory.mktemp("finished")
    config = TrainConfig.load(config_file(folder, deepseek_v3))
    config.out.mkdir()
    (config.out / "calibration.json").write_text("{}")
    DrafterRun(config).run()
    return folder / "train.yaml"


def changed(finished: Path, section: str, **keys: object) -> TrainConfig:
    """A later run of the same files with other settings."""
    copy = finished.with_name("changed.yaml")
    copy.write_text(finished.read_text())
    return change(copy, section, **keys)


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", "train", str(file), "--threads", "1"]


def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(deepseek_v3: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole, killed = (config_file(folder, deepseek_v3, steps=60) for folder in folders)
    DrafterRun(TrainConfig.load(whole)).run()

    running = subprocess.Popen(command(killed), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "killed/work/metrics.jsonl", time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < 10:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    logged = len(metrics(tmp_path / "killed/work"))
    assert not (tmp_path / "killed/drafter").exists(), "it was killed too late"
    subprocess.run(command(killed), cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=120)

    assert 10 <= logged < 60
    one, other = ((folder / "drafter/model.safetensors").read_bytes() for folder in folders)
    assert one == other
    curves = [[{k: v for k, v in m.items() if k != "seconds"} for m in metrics(f / "work")] for f in folders]
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[1]] == list(range(1, 61))


def test_a_stopped_run_says_so_and_goes_on(deepseek_v3: Path, tmp_path: Path) -> None:
    file = config_file(tmp_path, deepseek_v3, steps=4000, checkpoint_steps=100_000)
    running = subprocess.Popen(command(file), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "work/metrics.jsonl", time.monotonic() + 120
    while not log.exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]

    assert running.returncode == 1
    assert "of 4000 steps; the same command continues" in said
    logged = len(metrics(tmp_path / "work"))
    trainer = DrafterRun(TrainConfig.load(file)).trainer()
    assert trainer.steps == logged


def accepted_length(target: Path, drafter: Path, setting: Setting, max_tokens: int = 64) -> float:
    model = load_model(target, torch.float32, torch.device("cpu"))
    evaluation = Evaluation(model, target, drafter, ignore_eos=True, max_tokens=max_tokens)
    prompts = [tuple((11 * i + j * j) % 250 for j in range(3, 9)) for i in range(16)]
    (result,) = evaluation.measured({"random": prompts}, [setting])
    return result.figures.accepted_length


def trained_and_untrained(config: TrainConfig, target: Path, folder: Path) -> tuple[Path, Path]:
    """Two drafters of the same shape: one that has learnt, one before its first step."""
    run = DrafterRun(config)
    export_drafter(run.trainer().model, drafter_config(target, config.drafter, 16), folder)
    assert run.run().steps == config.training.steps
    return config.out, folder


def test_a_smoke_trained_drafter_beats_an_untrained_one(tmp_path: Path) -> None:
    file = config_file(tmp_path, SHIPPED_MODEL, steps=100)
    change(file, "drafter", mask_token_id=1, markov_rank=32)
    config = change(file, "text", sequences=128, tokens=96)

    trained, untrained = trained_and_untrained(config, SHIPPED_MODEL, tmp_path / "untrained")

    for setting in (Setting(0.0), Setting(1.0)):
        before, after = (accepted_length(SHIPPED_MODEL, folder, setting) for folder in (untrained, trained))
        assert after > before + 0.1, setting


def test_a_drafter_for_a_small_qwen3_in_the_published_layout(qwen3: Path, tmp_path: Path) -> None:
    """Grouped-query attention, published names, copies of the target's matrices; the engine loads and runs it."""
    config = change(config_file(tmp_path, qwen3, steps=200), "drafter", copies=True)

    trained, untrained = trained_and_untrained(config, qwen3, tmp_path / "untrained")

    raw = json.loads((trained / "config.json").read_text())
    assert raw["architectures"] == ["Qwen3DSparkModel"]
    names = set(load_file(trained / "model.safetensors"))
    assert {"embed_tokens.weight", "lm_head.weight", "fc.weight", "layers.0.self_attn.q_norm.weight"} <= names
    assert {"markov_head.markov_w1.weight", "markov_head.markov_w2.weight", "confidence_head.proj.weight"} <= names
    before, after = (accepted_length(qwen3, folder, Setting(0.0)) for folder in (untrained, trained))
    assert after > before


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.rate was 0\.02 when that run began, now it is 0\.01"):
        DrafterRun(changed(finished, "training", rate=0.01)).run()
    with pytest.raises(ConfigError, match=r"drafter\.markov_rank was 16"):
        DrafterRun(changed(finished, "drafter", markov_rank=8)).run()


def test_a_checkpoint_cut_in_the_middle_is_named(finished: Path) -> None:
    config = TrainConfig.load(finished)
    file = config.work / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    try:
        with pytest.raises(ConfigError, match=r"checkpoint\.pt: cannot be read .* delete it to begin again"):
            DrafterRun(config).run()
    finally:
        file.write_bytes(whole)


def test_a_target_that_changed_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"target\.dtype was 'float32' when this text was written"):
        DrafterRun(changed(finished, "target", dtype="bfloat16")).run()


def test_an_old_calibration_does_not_stay_beside_new_weights(finished: Path) -> None:
    out = TrainConfig.load(finished).out
    assert (out / "model.safetensors").exists()
    assert not (out / "calibration.json").exists()


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("training", {"step": 3}, r"training\.step: Extra"),
        ("training", {"steps": 0}, r"training\.steps: .*greater than 0"),
        ("text", {"tokens": 4}, "text.tokens: .*greater than or equal to 8"),
        ("drafter", {"block_size": 47}, r"text\.tokens 48 are too few for a block of 47"),
        ("drafter", {"target_layer_ids": []}, r"drafter\.target_layer_ids"),
    ],
)
def test_a_wrong_key_is_named(deepseek_v3: Path, tmp_path: Path, section: str, keys: dict[str, Any], said: str) -> None:
    file = config_file(tmp_path, deepseek_v3)
    with pytest.raises(ConfigError, match=f"train.yaml: .*{said}"):
        change(file, section, **keys)


def test_a_layer_that_cannot_be_tapped_is_named(deepseek_v3: Path, tmp_path: Path) -> None:
    config = change(config_file(tmp_path, deepseek_v3), "drafter", target_layer_ids=[90])
    with pytest.raises(ConfigError, match=r"target_layer_ids \[90\] are outside"):
        DrafterRun(config).run()
