"""The shipped model: a whole, ordinary checkpoint that has learnt what it claims."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from train.corpus import STDLIB, SourceFile, package_root
from train.model.baselines import Bigram, Unigram
from train.model.card import card
from train.model.evaluation import Checkpoint, mtp_agreement, token_losses
from train.model.mtp import initialise
from train.tokenizer import chat_text, encode

FOLDER = Path(__file__).parents[3] / "models" / "tiny-mla"
RESULTS = Path(__file__).parents[3] / "train" / "results" / "tiny-mla.json"
# A standard library file whose path hashes into the held-out part.
HELD_OUT = "stdlib/csv.py"
HELD_OUT_FILES = (HELD_OUT, "stdlib/code.py", "stdlib/importlib/util.py", "stdlib/email/_parseaddr.py")
TRAINED_ON = ("argparse.py", "collections/__init__.py", "typing.py", "inspect.py", "dataclasses.py", "json/decoder.py")
MAX_BYTES = 40 * 1024 * 1024


def library_text(path: str) -> str:
    root = package_root(STDLIB)
    assert root is not None
    return (root / path.removeprefix("stdlib/")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.load(FOLDER)


@pytest.fixture(scope="module")
def held_out_tokens(checkpoint: Checkpoint) -> np.ndarray:
    return encode(checkpoint.tokenizer, [library_text(HELD_OUT)])[0][:2500]


@pytest.fixture(scope="module")
def training_tokens(checkpoint: Checkpoint) -> np.ndarray:
    return np.concatenate(encode(checkpoint.tokenizer, [library_text(path) for path in TRAINED_ON]))


def test_folder_is_small_and_complete() -> None:
    names = {file.name for file in FOLDER.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MAX_BYTES
    assert json.loads((FOLDER / "generation_config.json").read_text())["eos_token_id"] == 0


def test_loads_with_nothing_missing() -> None:
    model, info = AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=True, output_loading_info=True)
    assert type(model) is DeepseekV3ForCausalLM
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    mtp_prefix = f"model.layers.{model.config.num_hidden_layers}."
    assert all(key.startswith(mtp_prefix) for key in info["unexpected_keys"])


def test_names_and_dtypes_are_as_published() -> None:
    with safe_open(FOLDER / "model.safetensors", framework="pt") as stored:
        dtypes = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
        assert stored.metadata() == {"format": "pt"}
    for layer in (1, 5):
        assert f"model.layers.{layer}.mlp.experts.7.down_proj.weight" in dtypes
        assert dtypes[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] == "F32"
    others = {dtype for name, dtype in dtypes.items() if not name.endswith("e_score_correction_bias")}
    assert others == {"BF16"}
    own = ("enorm", "hnorm", "eh_proj", "input_layernorm", "post_attention_layernorm", "shared_head.norm")
    assert all(f"model.layers.5.{name}.weight" in dtypes for name in own)


def test_held_out_loss_is_far_below_counting(
    checkpoint: Checkpoint, held_out_tokens: np.ndarray, training_tokens: np.ndarray
) -> None:
    assert all(SourceFile(path, "").held_out for path in HELD_OUT_FILES)
    with torch.inference_mode():
        loss = token_losses(checkpoint, held_out_tokens, 2048).mean()
    assert loss < Bigram(training_tokens, 4096).loss(held_out_tokens) - 0.5
    # The whole corpus makes a better bigram than six files do: this one is in the results.
    assert loss < json.loads(RESULTS.read_text())["held_out"]["bigram_loss"] - 0.5


def test_bigram_is_a_distribution(training_tokens: np.ndarray) -> None:
    bigram = Bigram(training_tokens, 4096)
    for before in (int(training_tokens[10]), 1):
        pairs = np.stack([np.full(4096, before), np.arange(4096)], axis=1)
        assert sum(np.exp(-bigram.loss(pair)) for pair in pairs) == pytest.approx(1, abs=1e-9)


@torch.inference_mode()
def test_mtp_logits_equal_transformers(
    checkpoint: Checkpoint, held_out_tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.5\..*"])
    main = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    oracle = MtpModel.from_pretrained(main).float().eval()
    tokens_BT = torch.from_numpy(held_out_tokens[:200].astype(np.int64))[None]
    hidden_BTD = main(tokens_BT, output_hidden_states=True).hidden_states[-1]
    positions = torch.arange(1, tokens_BT.shape[1])[None]
    state_BTD = oracle.forward_layer(0, hidden_BTD[:, :-1], positions, None, input_ids=tokens_BT[:, 1:])
    expected = main.lm_head(state_BTD)
    actual = checkpoint.mtp_logits(tokens_BT, checkpoint.hidden(tokens_BT))
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_mtp_has_learnt(checkpoint: Checkpoint, held_out_tokens: np.ndarray, training_tokens: np.ndarray) -> None:
    figures = mtp_agreement(checkpoint, held_out_tokens)
    guess = Unigram(training_tokens, 4096).top1(held_out_tokens)
    assert figures["top1"] > guess + 0.1
    assert figures["agreement"] > 0.35
    untrained = copy.deepcopy(checkpoint.mtp)
    initialise(untrained, 0.02)
    blank = mtp_agreement(Checkpoint(checkpoint.model, untrained, checkpoint.tokenizer), held_out_tokens)
    assert figures["loss"] < blank["loss"] - 1


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # done\r\n",
        "naïve café, žluťoučký kůň, 漢字かな, emoji 🐍🚀, zero \x00 byte, \u2028",
        "   leading and trailing   ",
        "can 't do n't , . !",
        "",
    ],
)
def test_tokenizer_round_trip_is_exact(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_and_specials() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == 4096
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    turns = [{"role": "user", "content": "Add two numbers."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Add two numbers.<|assistant|>"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (2, 3)


@torch.inference_mode()
def test_chats_end(checkpoint: Checkpoint) -> None:
    """The end token is likely where a held-out function's code ends, and unlikely before."""
    at_end, before = [], []
    for path in HELD_OUT_FILES:
        for function in SourceFile(path, library_text(path)).functions():
            ids = checkpoint.tokenizer.encode(chat_text(function.request, function.code))
            logits_TV = checkpoint.model.lm_head(checkpoint.hidden(torch.tensor([ids])))[0]
            end_T = logits_TV.softmax(-1)[:, checkpoint.tokenizer.eos_token_id]
            at_end.append(float(end_T[-2]))
            before.append(float(end_T[:-2].mean()))
    assert len(at_end) > 10
    assert np.mean(at_end) > 0.2
    assert np.mean(at_end) > 20 * np.mean(before)


def test_card_is_written_from_the_results() -> None:
    assert (FOLDER / "README.md").read_text() == card(json.loads(RESULTS.read_text()))


def test_every_weight_is_finite_and_used() -> None:
    for name, tensor in load_file(FOLDER / "model.safetensors").items():
        assert torch.isfinite(tensor).all(), name
        assert tensor.float().std() > 0 or tensor.ndim == 1, name


@torch.inference_mode()
def test_late_positions_are_usable(checkpoint: Checkpoint) -> None:
    """Few training rows were that long: late positions are worse than early ones, yet better than counting."""
    text = library_text("stdlib/argparse.py") + library_text("stdlib/inspect.py")
    losses = token_losses(checkpoint, encode(checkpoint.tokenizer, [text])[0][:8193], 8192)
    assert losses[6144:].mean() < json.loads(RESULTS.read_text())["held_out"]["bigram_loss"]
