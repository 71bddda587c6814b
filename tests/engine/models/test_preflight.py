"""Every reason to refuse a checkpoint, each by breaking a good one."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointRefused
from engine.models import Preflight, load_model, preflight
from engine.models.preflight import ARCHITECTURES, StoredTensor
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, save_random

CPU = torch.device("cpu")
PREFLIGHT = sys.modules["engine.models.preflight"]  # its package has a function of that name
WEIGHTS = "model.safetensors"


@pytest.fixture
def broken(deepseek_v3: Path, tmp_path: Path) -> Path:
    """A good checkpoint that a test may break."""
    return shutil.copytree(deepseek_v3, tmp_path / "model")


def look(path: Path) -> Preflight:
    return preflight(path, torch.float32, CPU)


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def assert_refused(path: Path, says: str) -> None:
    with pytest.raises(CheckpointRefused, match=says) as caught:
        look(path)
    assert str(path) in str(caught.value), "the message names the place"


def test_a_good_checkpoint_passes(deepseek_v3: Path, qwen3: Path, qwen3_sliding: Path) -> None:
    assert look(deepseek_v3).architecture == "DeepseekV3ForCausalLM"
    assert look(qwen3).architecture == look(qwen3_sliding).architecture == "Qwen3ForCausalLM"


def test_no_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no such directory")


def test_no_config(broken: Path) -> None:
    (broken / "config.json").unlink()

    assert_refused(broken, "config.json: no such file")


@pytest.mark.parametrize(("text", "says"), [("{", "not JSON"), ("[]", "holds a list"), ("\udcff", "not JSON")])
def test_a_config_that_is_no_json_object(broken: Path, text: str, says: str) -> None:
    (broken / "config.json").write_bytes(text.encode(errors="surrogateescape"))

    assert_refused(broken, says)


@pytest.mark.parametrize("named", [["GPT2LMHeadModel"], [], None])
def test_an_architecture_that_is_not_served(broken: Path, named: list[str] | None) -> None:
    edit_config(broken, architectures=named)

    assert_refused(broken, "is not served .DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Llama")


def test_pickled_weights_alone(broken: Path) -> None:
    (broken / WEIGHTS).rename(broken / "pytorch_model.bin")

    assert_refused(broken, "pickled weights are never loaded")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_that_looks_across_the_batch(broken: Path, kind: str, key: str) -> None:
    """`rope_scaling` is the key of older checkpoints."""
    edit_config(broken, rope_parameters=None, rope_theta=10000.0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 512, **factors}
    edit_config(broken, **{key: rope})

    assert_refused(broken, f"rope type {kind}")


def test_a_truncated_file(broken: Path) -> None:
    file = broken / WEIGHTS
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1000)

    assert_refused(broken, f"has {size - 1000} bytes, its header describes {size}: the file is incomplete")


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\x80\x02pickled", b"\xff" * 100, (8).to_bytes(8, "little") + b"not json"],
    ids=["empty", "short", "pickle", "length", "json"],
)
def test_an_invalid_safetensors_file(broken: Path, content: bytes) -> None:
    (broken / WEIGHTS).write_bytes(content)

    assert_refused(broken, "not a safetensors file")


@pytest.mark.parametrize("header", [b"[]", b"5", b'{"a": 5}', b'{"a": {"dtype": "F32"}}'])
def test_a_header_that_describes_no_tensors(broken: Path, header: bytes) -> None:
    (broken / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)

    assert_refused(broken, "not a safetensors file")


def test_an_index_with_a_missing_tensor(broken: Path) -> None:
    promised = dict.fromkeys(load_file(broken / WEIGHTS), WEIGHTS) | {"model.extra": "model-2.safetensors"}
    (broken / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": promised}))

    assert_refused(broken, rf"1 of {len(promised)} tensors .*first: model.extra; look for model-2.safetensors")


def test_a_layer_without_tensors(broken: Path) -> None:
    """Layer 3 is the next-token layer."""
    edit_config(broken, num_hidden_layers=6)

    assert_refused(broken, r"num_hidden_layers is 6, layers \[4, 5\] have no tensor")


def test_an_embedding_of_another_shape(broken: Path) -> None:
    edit_config(broken, vocab_size=301)

    assert_refused(broken, r"embed_tokens.weight is \[300, 64\], config.json says \[301, 64\]")


def test_no_embedding(broken: Path) -> None:
    edit_weights(broken, lambda tensors: tensors.pop("model.embed_tokens.weight"))

    assert_refused(broken, "no tensor model.embed_tokens.weight")


def test_too_little_memory(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = look(broken).loaded_bytes(torch.float32)
    monkeypatch.setattr(PREFLIGHT, "free_memory", lambda device: needed)
    look(broken)

    monkeypatch.setattr(PREFLIGHT, "free_memory", lambda device: needed - 1)

    assert_refused(broken, "at torch.float32 on cpu, which has")


def test_missing_memory_is_reported_in_numbers(deepseek_v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = StoredTensor("model.norm.weight", "BF16", (2**15, 2**15), 2**31)
    found = replace(look(deepseek_v3), tensors={large.name: large})
    monkeypatch.setattr(PREFLIGHT, "free_memory", lambda device: 3 * 2**30)

    with pytest.raises(CheckpointRefused, match=r"2\.00 GiB as stored become 4\.00 GiB .* 3\.00 GiB free"):
        PREFLIGHT._check_memory(found, torch.float32, CPU)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.kv_b_proj.weight", "model.norm.weight"])
def test_a_missing_weight_is_refused_after_loading(broken: Path, name: str) -> None:
    """transformers would fill it with noise and warn."""
    edit_weights(broken, lambda tensors: tensors.pop(name))

    with pytest.raises(CheckpointRefused, match=f"1 missing keys: .*{name}"):
        load_model(broken, torch.float32, CPU)


def test_a_weight_of_another_shape_is_refused_after_loading(broken: Path) -> None:
    edit_weights(broken, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))

    with pytest.raises(CheckpointRefused, match=r"model\.norm\.weight"):
        load_model(broken, torch.float32, CPU)


def test_loaded_bytes_leave_out_next_token_layers_and_scales(broken: Path) -> None:
    """A next-token module is stored as one more layer; transformers does not load it."""
    whole = look(broken)
    extra = {"model.layers.0.mlp.w_scale_inv": torch.ones(4)}
    edit_weights(broken, lambda tensors: tensors.update(extra))
    with_scales = look(broken)
    edit_weights(broken, lambda tensors: [tensors.pop(name) for name in [*tensors] if ".layers.3." in name])

    target = look(broken).stored_bytes - 4 * 4

    assert with_scales.stored_bytes == whole.stored_bytes + 4 * 4
    assert whole.stored_bytes > target + 4 * 64 * 128, "eh_proj and the rest of a layer"
    for found in (whole, with_scales):
        assert found.loaded_bytes(torch.float32) == target
        assert found.loaded_bytes(torch.bfloat16) == target // 2


def test_the_fingerprint_tells_two_runs_of_one_shape_apart(deepseek_v3: Path, tmp_path: Path) -> None:
    one, other = look(deepseek_v3).fingerprint, look(save_random(DEEPSEEK_V3, tmp_path, seed=1)).fingerprint

    assert {key for key in one if one[key] != other[key]} == {"weights"}


def test_the_fingerprint_is_of_the_content_not_of_the_place(broken: Path, deepseek_v3: Path) -> None:
    assert look(broken).fingerprint == look(deepseek_v3).fingerprint


def test_the_fingerprint_changes_with_the_configuration(broken: Path, deepseek_v3: Path) -> None:
    edit_config(broken, rms_norm_eps=1e-5)

    one, other = look(broken).fingerprint, look(deepseek_v3).fingerprint

    assert {key for key in one if one[key] != other[key]} == {"config"}


def test_every_family_has_a_checkpoint_here() -> None:
    served = {name.removesuffix("ForCausalLM") for name in ARCHITECTURES}

    assert served == {
        type(config).__name__.removesuffix("Config") for config in (DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3)
    }
