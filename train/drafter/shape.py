"""A drafter's config.json, made from its target's, and its folder, written in the published format."""

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from engine.drafters.calibration import FILE as CALIBRATION
from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from engine.errors import ConfigError
from engine.files import replaced
from train.drafter.config import DrafterSection, JsonObject
from train.drafter.target import FrozenTarget

FORMS = {"mla": ("DeepseekV3DSparkModel", "deepseek_v3"), "gqa": ("Qwen3DSparkModel", "qwen3")}
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
NOT_INHERITED = (*MTP_KEYS, "quantization_config", "auto_map", "sliding_window", "max_window_layers")


def drafter_config(target: Path, section: DrafterSection, anchors: int) -> JsonObject:
    """Copy the target's config.json and add DSpark's own keys. Raises ConfigError that names the key."""
    theirs = json.loads((target / "config.json").read_text())
    form = section.form or ("mla" if "kv_lora_rank" in theirs else "gqa")
    architecture, model_type = FORMS[form]
    own = {
        "architectures": [architecture],
        "model_type": model_type,
        "num_target_layers": theirs["num_hidden_layers"],
        "num_hidden_layers": section.num_layers,
        "layer_types": ["full_attention"] * section.num_layers,
        "block_size": section.block_size,
        "mask_token_id": section.mask_token_id,
        "target_layer_ids": list(section.target_layer_ids),
        "num_anchors": anchors,
        "enable_confidence_head": section.confidence_head,
        "confidence_head_with_markov": section.confidence_head and section.markov_rank > 0,
        "markov_rank": section.markov_rank,
        "markov_head_type": section.markov_head_type,
        "tie_word_embeddings": False,
    }
    if form == "mla":
        own["first_k_dense_replace"] = section.num_layers
    elif theirs.get("head_dim") is None:  # Llama's may be left out; Qwen3's own default is another
        own["head_dim"] = theirs["hidden_size"] // theirs["num_attention_heads"]
    inherited = {key: value for key, value in theirs.items() if key not in NOT_INHERITED}
    raw = {**inherited, **own, **section.backbone}
    try:
        parse_config(raw)
        AutoConfig.for_model(model_type, **{key: value for key, value in raw.items() if key != "model_type"})
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"drafter: does not fit {target}: {error}") from None
    return raw


def parse_config(raw: JsonObject) -> DrafterConfig:
    """Return the engine's view of a drafter's config.json. Raises ValidationError."""
    return DrafterConfig.model_validate({**raw, "architecture": raw["architectures"][0]})


def export_drafter(model: DSparkModel, raw: JsonObject, folder: Path, copies_of: FrozenTarget | None = None) -> None:
    """Write config.json and bfloat16 weights; with copies of a target's embedding and head, if one is given.

    A calibration in the folder was fitted for other weights and is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(tensor.to(torch.bfloat16)) for name, tensor in model.state_dict().items()}
    if copies_of is not None:
        copies = {"embed_tokens.weight": copies_of.embedding_VD, "lm_head.weight": copies_of.head_VD}
        tensors |= {name: _stored(_exactly(matrix)) for name, matrix in copies.items()}
    (folder / CALIBRATION).unlink(missing_ok=True)
    with replaced(folder / "config.json") as partial:
        partial.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    with replaced(folder / "model.safetensors") as partial:
        save_file(tensors, partial, {"format": "pt"})
        partial.chmod(0o644)


def _exactly(matrix: Tensor) -> Tensor:
    """Convert to bfloat16 if that loses nothing: the loader checks that a copy equals the target's matrix."""
    short = matrix.to(torch.bfloat16)
    return short if torch.equal(short.to(matrix.dtype), matrix) else matrix


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
