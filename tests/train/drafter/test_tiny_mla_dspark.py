"""The shipped drafter: small, loadable, calibrated, honest in its card, and better than drafting nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bench.docs import shipped_drafter_card
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from engine.drafters.load import load_dspark
from engine.models import load_model
from tests.train.model.test_tiny_mla import HELD_OUT, library_text
from train.drafter.card import numbers_per_token
from train.drafter.config import TrainConfig
from train.drafter.evaluation import Evaluation, Setting
from train.drafter.shape import drafter_config
from train.tokenizer import PAD

MAX_BYTES = 12_000_000
MAX_CARRIED = 1.25


def test_folder_is_small_and_every_weight_is_finite_and_bfloat16() -> None:
    tensors = load_file(SHIPPED_DRAFTER / "model.safetensors")
    assert (SHIPPED_DRAFTER / "model.safetensors").stat().st_size <= MAX_BYTES
    assert not any("embed_tokens" in name or "lm_head" in name for name in tensors)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, name
        assert torch.isfinite(tensor).all(), name


def test_engine_loads_it_with_its_calibration() -> None:
    loaded = load_dspark(SHIPPED_DRAFTER, load_model(SHIPPED_MODEL, torch.float32, torch.device("cpu")))
    assert loaded.fingerprint["architecture"] == "DeepseekV3DSparkModel"
    assert loaded.temperatures is not None
    assert len(loaded.temperatures) == loaded.block_length


def test_it_is_what_its_training_file_asks_for() -> None:
    config = TrainConfig.load(SHIPPED_DRAFTER / "train.yaml")
    asked = drafter_config(config.target.path, config.drafter, config.training.anchors)
    assert json.loads((SHIPPED_DRAFTER / "config.json").read_text()) == asked
    facts = json.loads((SHIPPED_DRAFTER / "training.json").read_text())
    assert facts["training"] == json.loads(json.dumps(config.training.model_dump(mode="json")))
    assert facts["steps"] == config.training.steps


@pytest.mark.parametrize("name", ["dflash", "rank0"])
def test_ablations_differ_in_what_they_say(name: str) -> None:
    """The same text, features, steps and rates."""
    own, other = (TrainConfig.load(file) for file in (SHIPPED_DRAFTER / "train.yaml", ablation(name)))
    assert (own.target, own.text, own.features, own.shared) == (other.target, other.text, other.features, other.shared)
    shapes = [c.drafter.model_dump(exclude={"markov_rank", "confidence_head"}) for c in (own, other)]
    assert shapes[0] == shapes[1]
    assert other.drafter.markov_rank == 0
    loops = [c.training.model_dump(exclude={"losses", "markov_rate"}) for c in (own, other)]
    assert loops[0] == loops[1]


def ablation(name: str) -> Path:
    return Path(__file__).parents[3] / "train" / "ablations" / f"{name}.yaml"


def test_handoffs_grow_by_a_quarter_at_most() -> None:
    cached = numbers_per_token(SHIPPED_MODEL, SHIPPED_DRAFTER)
    assert 1 + cached["drafter"] / cached["target"] <= MAX_CARRIED


def test_mask_token_is_never_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    mask = json.loads((SHIPPED_DRAFTER / "config.json").read_text())["mask_token_id"]
    assert tokenizer.convert_ids_to_tokens(mask) == PAD
    assert mask not in tokenizer.encode(library_text(HELD_OUT))


@pytest.mark.parametrize(("setting", "least"), [(Setting(0.0), 2.3), (Setting(1.0), 2.1)])
def test_drafts_are_accepted_and_confidence_is_near_the_truth(setting: Setting, least: float) -> None:
    tokens = AutoTokenizer.from_pretrained(SHIPPED_MODEL).encode(library_text(HELD_OUT))
    prompts = [tuple(tokens[start : start + 96]) for start in range(0, 16 * 48, 48)]
    model = load_model(SHIPPED_MODEL, torch.float32, torch.device("cpu"))
    evaluation = Evaluation(model, SHIPPED_MODEL, SHIPPED_DRAFTER, max_tokens=96)
    (result,) = evaluation.measured({"library": prompts}, [setting])
    assert result.figures.accepted_length > least
    assert result.figures.auc is not None and result.figures.auc > 0.55
    if setting.temperature:
        assert result.figures.ece is not None and result.figures.ece < 0.08


def test_card_is_written_from_the_results() -> None:
    assert (SHIPPED_DRAFTER / "README.md").read_text() == shipped_drafter_card()
