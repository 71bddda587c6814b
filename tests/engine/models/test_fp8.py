"""DeepSeek-V3 as published: fp8 weights with a scale for each 128 x 128 block, partial blocks included."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config

from engine.config import Config
from engine.errors import CheckpointRefused
from engine.models import preflight
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.checkpoints import DEEPSEEK_V3, save_random
from tests.oracle import Oracle, assert_same

WIDE = DeepseekV3Config.from_dict(
    {key: value for key, value in DEEPSEEK_V3.to_dict().items() if key not in ("head_dim", "qk_head_dim")}
    | {"hidden_size": 128, "kv_lora_rank": 128, "q_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16}
    | {"v_head_dim": 32, "intermediate_size": 256, "moe_intermediate_size": 128}
)
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """fp8 weight, scales, and the float32 weight they stand for, written with plain loops."""
    rows, columns = weight.shape
    scale = torch.empty(math.ceil(rows / 128), math.ceil(columns / 128))
    codes, exact = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128)
            scale[i, j] = weight[block].abs().max() / 448
            codes[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
            exact[block] = codes[block].float() * scale[i, j]
    return codes, scale, exact


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An fp8 checkpoint, and the float32 checkpoint that says the same."""
    plain, fp8 = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("fp8")
    shutil.copytree(save_random(WIDE, plain), fp8, dirs_exist_ok=True)
    stored: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        stored[name] = exact[name] = tensor
        if "layers" in name and ("_proj.weight" in name or "with_mqa" in name):
            stored[name], stored[name + "_scale_inv"], exact[name] = quantised(tensor)
    save_file(stored, fp8 / "model.safetensors", metadata={"format": "pt"})
    save_file(exact, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((fp8 / "config.json").read_text())
    (fp8 / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}))
    return fp8, plain


def test_an_fp8_checkpoint_answers_as_its_exact_float32_twin(checkpoints: tuple[Path, Path]) -> None:
    fp8, plain = checkpoints
    stored = load_file(fp8 / "model.safetensors")
    assert stored["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape[0] % 128 != 0, "a partial block"
    config = Config.parse(
        {"model": {"path": str(fp8)}, "prefill": {"cache_bytes": "4MB"}, "decode": {"default": {"cache_bytes": "4MB"}}}
    )
    request = Request(id="a", prompt=tuple(range(40)), sampling=Sampling(), stop=StopRules(max_tokens=24))

    answer = Pair(config).generate([request])["a"]

    assert assert_same(answer, *Oracle(plain).greedy(request.prompt, 24)) == 0


def test_the_preflight_counts_what_fp8_becomes(checkpoints: tuple[Path, Path]) -> None:
    fp8, plain = checkpoints
    cpu = torch.device("cpu")

    quantised_look, plain_look = preflight(fp8, torch.float32, cpu), preflight(plain, torch.float32, cpu)

    assert quantised_look.stored_bytes < 0.5 * plain_look.stored_bytes
    assert quantised_look.loaded_bytes(torch.float32) == plain_look.loaded_bytes(torch.float32)


def test_other_quantisations_are_refused_by_name(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))

    with pytest.raises(CheckpointRefused, match="quantization_config gptq is not served"):
        preflight(tmp_path, torch.float32, torch.device("cpu"))
