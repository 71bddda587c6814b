"""The shipped drafter: small, loadable, honest in its card, and better than drafting nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from engine.drafters.load import load_dspark
from engine.models import load_model
from tests.train.test_tiny_mla import HELD_OUT, library_text
from train.drafter_card import drafter_card
from train.drafter_evaluate import ShippedDrafter, compared, numbers_per_token
from train.tokenizer import PAD

MODELS = Path(__file__).parents[2] / "models"
FOLDER, TARGET = MODELS / "tiny-mla-dspark", MODELS / "tiny-mla"
RESULTS = Path(__file__).parents[2] / "train" / "results" / "tiny-mla-dspark.json"
MAX_BYTES = 12_000_000
MAX_CARRIED = 1.25


def test_folder_is_small_and_every_weight_is_finite_and_bfloat16() -> None:
    tensors = load_file(FOLDER / "model.safetensors")
    assert (FOLDER / "model.safetensors").stat().st_size <= MAX_BYTES
    assert not any("embed_tokens" in name or "lm_head" in name for name in tensors)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, name
        assert torch.isfinite(tensor).all(), name


def test_engine_loads_it() -> None:
    loaded = load_dspark(FOLDER, load_model(TARGET, torch.float32, torch.device("cpu")))
    assert loaded.fingerprint["architecture"] == "DeepseekV3DSparkModel"


def test_handoffs_grow_by_a_quarter_at_most() -> None:
    cached = numbers_per_token(TARGET, FOLDER)
    assert 1 + cached["drafter"] / cached["target"] <= MAX_CARRIED


def test_mask_token_is_never_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    mask = json.loads((FOLDER / "config.json").read_text())["mask_token_id"]
    assert tokenizer.convert_ids_to_tokens(mask) == PAD
    assert mask not in tokenizer.encode(library_text(HELD_OUT))


def test_drafts_are_accepted_and_confidence_is_near_the_truth() -> None:
    tokens = AutoTokenizer.from_pretrained(TARGET).encode(library_text(HELD_OUT))[:400]
    found = compared(ShippedDrafter.load(FOLDER, TARGET), torch.tensor([tokens]), first=64, greedy=False)
    acceptance_K = found.acceptance_RK.mean(0)
    assert acceptance_K[0] > 0.35
    assert acceptance_K[-1] > 0.2
    assert (found.confidence_RK.mean(0) - acceptance_K).abs().max() < 0.1


def test_card_is_written_from_the_results() -> None:
    assert (FOLDER / "README.md").read_text() == drafter_card(json.loads(RESULTS.read_text()))
