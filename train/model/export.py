"""Write a model, its MTP layer and its tokenizer as an ordinary DeepSeek-V3 checkpoint folder."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from engine.drafters.mtp import MTPLayer
from train.model.mtp import published_names

LOCAL_KEYS = ("is_local", "local_files_only")
ROUTER_BIAS = "e_score_correction_bias"


def export(model: DeepseekV3ForCausalLM, mtp: MTPLayer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Replace the files in `folder` one by one, so that a reader sees each file old or new, never half-written.

    Weights are bfloat16; the routers' selection bias stays float32, as in the published checkpoint. Embedding and
    head are written once: the MTP layer uses the main model's.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial, save_jinja_files=False)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    ).save_pretrained(partial)
    weights = partial / "model.safetensors"
    tensors = load_file(weights) | dict(published_names(mtp))
    save_file({name: _stored(name, tensor) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    weights.chmod(0o644)
    _edit(partial / "config.json", {"dtype": "bfloat16"})
    # The name that every release of transformers, vLLM and SGLang knows.
    _edit(partial / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        os.replace(file, folder / file.name)
    partial.rmdir()


def _stored(name: str, tensor: Tensor) -> Tensor:
    dtype = torch.float32 if name.endswith(ROUTER_BIAS) else torch.bfloat16
    return tensor.detach().to("cpu", dtype).contiguous()


def _edit(file: Path, changes: dict[str, str]) -> None:
    content = {key: value for key, value in json.loads(file.read_text()).items() if key not in LOCAL_KEYS} | changes
    file.write_text(json.dumps(content, indent=2) + "\n")
