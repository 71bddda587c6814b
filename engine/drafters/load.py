"""Loads a drafter for a target, from published files with or without copies of embedding and head.

DSpark has its own directory; MTP is a layer in the target's checkpoint that transformers does not load.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from engine.attention import attach
from engine.drafters import LoadedDrafter
from engine.drafters.calibration import Calibration
from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel, LoadedDSpark
from engine.drafters.mtp import LoadedMTP, MTPLayer
from engine.errors import CheckpointRefused
from engine.kernels import dense, use_kernels
from engine.models import LoadedModel, Preflight
from engine.models.fp8 import dequantised_state
from engine.models.preflight import StoredTensor, stored_tensors
from engine.pages import Entry

COPIES = ("embed_tokens.weight", "lm_head.weight")  # copies of the target's matrices that a published drafter may have
NO_MTP_KNOWN = "model.drafter: mtp: {} has no MTP layer that is supported; choose none or a DSpark directory"
NO_MTP_LAYER = "model.drafter: mtp: {} has no tensor {}*, so it has no MTP layer; choose none or a DSpark directory"


def load_drafter(source: Path | Literal["mtp"], target: LoadedModel, mtp_drafts: int = 1) -> LoadedDrafter:
    """Load the drafter of a directory, or the target's MTP layer with blocks of `mtp_drafts` tokens.

    Raises CheckpointRefused with the key or the tensor at fault.
    """
    return load_mtp(target, mtp_drafts) if source == "mtp" else load_dspark(source, target)


@dataclass(frozen=True)
class DrafterSize:
    """A drafter's number of parameters and the entries that its layers cache, known without loading it."""

    num_parameters: int
    entries: tuple[Entry, ...]


def examine_drafter(source: Path | Literal["mtp"], target: Preflight, dtype: torch.dtype) -> DrafterSize:
    """Check, without loading weights, that a drafter fits this target. Raises CheckpointRefused.

    Only `load_drafter` compares copies of the target's matrices with the target's.
    """
    model = _meta_mtp(target) if source == "mtp" else _meta_dspark(source, target)
    entries = attach(model.to(dtype).eval().requires_grad_(False), "drafter")
    return DrafterSize(sum(p.numel() for p in model.parameters()), tuple(entries))


def _meta_dspark(path: Path, target: Preflight) -> nn.Module:
    config, raw = DrafterConfig.load(path)
    _check_target(path, config, target.config)
    stored = {tensor.name: tensor for file in _files(path) for tensor in stored_tensors(file)}
    with torch.device("meta"):
        model = DSparkModel(config, AutoConfig.for_model(config.model_type, **_without(raw, "model_type")))
    _check_names(path, model, {name: tensor for name, tensor in stored.items() if name not in COPIES})
    return model


def _meta_mtp(target: Preflight) -> nn.Module:
    number = target.config.num_hidden_layers
    if target.architecture != "DeepseekV3ForCausalLM":
        raise CheckpointRefused(NO_MTP_KNOWN.format(target.architecture))
    if not any(name.startswith(f"model.layers.{number}.") for name in target.tensors):
        raise CheckpointRefused(NO_MTP_LAYER.format(target.path, f"model.layers.{number}."))
    with torch.device("meta"):
        return MTPLayer(target.config_without_quantization, number)


def load_dspark(path: Path, target: LoadedModel) -> LoadedDSpark:
    """Check, load and attach. Raises CheckpointRefused, naming the key or the tensor at fault."""
    config, raw = DrafterConfig.load(path)
    _check_target(path, config, target.config)
    tensors = _tensors(path)
    digest = _digest(tensors)
    module = target.module
    _check_copies(path, module, tensors, *COPIES)
    with torch.device(target.device):
        model = DSparkModel(config, AutoConfig.for_model(config.model_type, **_without(raw, "model_type")))
    _check_names(path, model, tensors)
    state = {name: tensor.to(target.device, target.dtype) for name, tensor in tensors.items()}
    model.load_state_dict(state, assign=True)  # rotary frequencies are not in it, and stay float32
    entries = attach(model.eval().requires_grad_(False), "drafter")
    use_kernels(model)
    calibration = Calibration.load(path, digest, config.block_size)
    return LoadedDSpark(
        model=model,
        embedding=module.get_input_embeddings(),
        head=module.get_output_embeddings(),
        entries=tuple(entries),
        fingerprint={"architecture": config.architecture, "weights": digest},
        temperatures=None if calibration is None else calibration.temperatures,
    )


def load_mtp(target: LoadedModel, block_length: int) -> LoadedMTP:
    """Load the first MTP layer of the target's checkpoint. Raises CheckpointRefused if it is missing or incomplete."""
    module = target.module
    number = target.config.num_hidden_layers
    prefix, where = f"model.layers.{number}.", target.files[0].parent
    if target.architecture != "DeepseekV3ForCausalLM":
        raise CheckpointRefused(NO_MTP_KNOWN.format(target.architecture))
    state = dequantised_state(target.files, target.fp8_block, target.dtype, prefix)
    if not state:
        raise CheckpointRefused(NO_MTP_LAYER.format(where, prefix))
    embedding, head = f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight"
    _check_copies(where, module, state, embedding, head)
    state = fused_experts({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    with torch.device(target.device):
        layer = MTPLayer(module.config, number).to(target.dtype)
    _check_names(where, layer, state)
    wide = tuple(module._keep_in_fp32_modules_strict or ())
    dtypes = {name: torch.float32 if name.endswith(wide) else target.dtype for name in state}
    layer.load_state_dict({n: t.to(target.device, dtypes[n]) for n, t in state.items()}, assign=True)
    entries = attach(layer.eval().requires_grad_(False), "drafter")
    use_kernels(layer)
    decoder = module.get_decoder()
    return LoadedMTP(
        layer=layer,
        last_layer=number - 1,
        final_norm=decoder.norm,
        rotary=decoder.rotary_emb,
        embedding=module.get_input_embeddings(),
        head=module.get_output_embeddings(),
        entries=tuple(entries),
        fingerprint={"architecture": "DeepseekV3MTP", "weights": target.fingerprint["weights"]},
        block_length=block_length,
    )


def fused_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack the published experts' matrices into one tensor for all experts, as transformers keeps them."""
    found = [re.fullmatch(r"mlp\.experts\.(\d+)\.gate_proj\.weight", name) for name in state]
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        return state
    wanted = {n: [f"mlp.experts.{n}.{half}_proj.weight" for half in ("gate", "up", "down")] for n in numbers}
    absent = [name for names in wanted.values() for name in names if name not in state]
    if absent:
        raise CheckpointRefused(f"MTP layer: lacks {len(absent)} tensors: {', '.join(absent[:3])}")
    gate_up = torch.stack([torch.cat([state[names[0]], state[names[1]]]) for names in wanted.values()])
    down = torch.stack([state[names[2]] for names in wanted.values()])
    taken = {name for names in wanted.values() for name in names}
    rest = {name: tensor for name, tensor in state.items() if name not in taken}
    return {**rest, "mlp.experts.gate_up_proj": gate_up, "mlp.experts.down_proj": down}


def _without(raw: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in raw.items() if key not in keys}


def _check_target(path: Path, config: DrafterConfig, theirs: PretrainedConfig) -> None:
    for key, wanted, found in (
        ("num_target_layers", config.num_target_layers, theirs.num_hidden_layers),
        ("hidden_size", config.hidden_size, theirs.hidden_size),
        ("vocab_size", config.vocab_size, theirs.vocab_size),
    ):
        if wanted != found:
            raise CheckpointRefused(f"drafter {path}: made for a target with {key} {wanted}; this one has {found}")


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointRefused(f"drafter {path}: no *.safetensors file; pickled weights are never loaded")
    return files


def _tensors(path: Path) -> dict[str, Tensor]:
    return {name: tensor for file in _files(path) for name, tensor in _stored(file)}


def _stored(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, stored.get_tensor(name)
    except Exception as error:
        raise CheckpointRefused(f"drafter {file}: {error}") from error


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return a digest of all of a drafter's bytes."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        content.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _check_copies(path: Path, target: PreTrainedModel, tensors: dict[str, Tensor], embedding: str, head: str) -> None:
    """Remove copies of the target's matrices from `tensors`. Raises CheckpointRefused if one differs from the target's:
    then the drafter was made for another target."""
    for name, module in ((embedding, target.get_input_embeddings()), (head, target.get_output_embeddings())):
        copy = tensors.pop(name, None)
        if copy is None:
            continue
        own = dense(module)
        if copy.shape != own.shape or not torch.equal(copy.to(own.dtype).to(own.device), own):
            raise CheckpointRefused(f"drafter {path}: {name} is not the target's own: it was made for another target")


def _check_names(path: Path, model: nn.Module, tensors: Mapping[str, Tensor | StoredTensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    misshapen = {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]}
    faults = {
        "lacks": wanted.keys() - found.keys(),
        "does not know": found.keys() - wanted.keys(),
        "misshapes": misshapen,
    }
    for fault, names in faults.items():
        if names:
            raise CheckpointRefused(f"drafter {path}: {fault} {len(names)} tensors: {', '.join(sorted(names)[:3])}")
