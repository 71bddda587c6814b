"""Models as arithmetic: against published figures, against transformers' own modules, against the pages we serve."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import SHIPPED_MODEL
from engine.errors import ConfigError
from engine.models import entries_of, examine
from hardware.layout import Layout
from hardware.model import MODELS, Model, known_models

V32, FLASH, PRO = (Model.of(f"deepseek-{name}") for name in ("v3.2", "v4-flash", "v4-pro"))
MILLION = 2**20


@pytest.mark.parametrize(("model", "growing"), [(V32, 48_068), (PRO, 5_031), (FLASH, 3_514)])
def test_bytes_that_a_token_adds(model: Model, growing: int) -> None:
    """DeepSeek-V4's paper (arXiv 2606.19348) and the layouts of vLLM and SGLang."""
    assert round(model.growing_bytes) == growing


@pytest.mark.parametrize(("model", "percent", "times"), [(PRO, 10.5, 9.55), (FLASH, 7.3, 13.67)])
def test_the_share_of_v32_at_a_million_tokens(model: Model, percent: float, times: float) -> None:
    share = model.kept_bytes(MILLION) / V32.kept_bytes(MILLION)

    assert round(100 * share, 1) == percent
    assert round(1 / share, 2) == times


def test_window_entries_count_and_inputs_are_apart() -> None:
    entry = 448 + 2 * 64 + 8
    held = PRO.cache_bytes(MILLION)

    assert held["window"] == 61 * 128 * entry
    assert held["compressor"] == 30 * 8 * 4 * (2 * 1024 + 2 * 256) + 31 * 128 * 4 * 2 * 512
    assert PRO.kept_bytes(MILLION) == held["full"] + held["window"]


def test_fp8_index_keys_cost_what_engines_see() -> None:
    pro, flash = (Model.of(f"deepseek-v4-{name}", index="fp8") for name in ("pro", "flash"))

    assert round(100 * pro.kept_bytes(MILLION) / V32.kept_bytes(MILLION), 1) == 11.5
    assert round(100 * flash.kept_bytes(MILLION) / V32.kept_bytes(MILLION), 1) == 8.0


@pytest.mark.parametrize(
    ("model", "megabytes"),
    [(PRO, (25, 44, 108, 706)), (FLASH, (11, 24, 68, 480)), (V32, (115, 346, 1137, 8525))],
)
def test_bytes_that_a_step_reads(model: Model, megabytes: tuple[int, ...]) -> None:
    contexts = (4096, 32_768, 131_072, MILLION)

    assert tuple(round(model.read_bytes(context) / 1e6) for context in contexts) == megabytes


@pytest.mark.parametrize(
    ("model", "total", "active", "gigabytes", "routed", "one"),
    [(FLASH, 284.25, 13.19, 155, 147, 10.7), (PRO, 1572.7, 48.6, 849, 822, 38.2), (V32, 671, 37, 674, 654, 38.4)],
)
def test_weights(model: Model, total: float, active: float, gigabytes: float, routed: float, one: float) -> None:
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.002)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.015)
    assert model.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)
    assert model.routed_bytes / 1e9 == pytest.approx(routed, rel=0.005)
    assert model.touched_bytes(1) / 1e9 == pytest.approx(one, rel=0.01)


def test_operations_of_a_token_at_a_million() -> None:
    """The V4 paper: 27% (Pro) and 10% (Flash) of V3.2's, its own rounding and count of the indexer."""
    whole = V32.operations(MILLION)

    assert PRO.operations(MILLION) / whole == pytest.approx(0.27, abs=0.02)
    assert FLASH.operations(MILLION) / whole == pytest.approx(0.10, abs=0.025)


@pytest.mark.parametrize("name", known_models())
def test_parameters_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Its modules on the meta device: nothing is allocated. Norms, biases, sinks and hash tables are left out here."""
    content = json.loads((MODELS / f"{name}.json").read_text())
    content.pop("quantization_config", None)
    content.pop("source")
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    theirs = sum(parameter.numel() for parameter in module.parameters())

    assert Model.of(name).parameters == pytest.approx(theirs, rel=2e-4)


def test_the_shipped_model_weighs_what_it_does() -> None:
    looked = examine(SHIPPED_MODEL)
    stored = sum(entry.row_bytes for entry in entries_of(looked, torch.float32))

    assert Model.of(SHIPPED_MODEL, cache="fp32").growing_bytes == stored


def test_windows_stop_growing() -> None:
    for model in (FLASH, PRO, V32):
        for kind in model.attentions:
            for entry in kind.cache:
                if entry.window is not None:
                    assert entry.at(entry.window) == entry.at(10 * entry.window)


def test_gemma_windows_and_shared_keys(tmp_path: Path) -> None:
    """Gemma 4 12B as published: 40 layers with a window of 1,024 and 8 global ones whose keys are values."""
    config = {
        "model_type": "gemma4_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "vocab_size": 262_144,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "num_global_key_value_heads": 1,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
        "hidden_size_per_layer_input": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": config}))
    model = Model.of(tmp_path)

    assert model.growing_bytes == 8 * 2 * 512 * 2
    assert model.cache_bytes(100_000)["window"] == 40 * 1024 * 2 * 8 * 256 * 2
    assert model.tied


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "holds no JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"model_type": "mamba2"}', "model_type 'mamba2' is not counted here"),
        ('{"model_type": "deepseek_v3", "num_hidden_layers": 2}', "is missing"),
        (
            '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8,'
            ' "vocab_size": 9, "num_hidden_layers": 3, "layer_types": ["full_attention"]}',
            "num_hidden_layers is 3, and 1 kinds are listed",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)

    with pytest.raises(ConfigError) as caught:
        Model.of(file)

    assert says in str(caught.value)
    assert str(file) in str(caught.value) or tmp_path.name in str(caught.value)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="deepseek-v4-pro"):
        Model.of("deepseek-v5")


def test_the_layout_as_json() -> None:
    content = Layout(PRO, V32).as_json()

    assert content["growing"]["compressed, one for 128 tokens"] == {"layers": 31, "bytes_per_token": 584 / 128}
    assert content["ratio"]["kept"][str(MILLION)] == pytest.approx(9.55, abs=0.005)
    assert json.loads(json.dumps(content)) == content
