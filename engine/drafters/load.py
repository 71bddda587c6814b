"""Loading a drafter for a target: published files as they are, with or without copies of embedding and head."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel, LoadedDrafter, attach_backbone
from engine.errors import CheckpointRefused
from engine.kernels import pack_linears
from engine.models import LoadedModel

COPIES = {"embed_tokens.weight": "get_input_embeddings", "lm_head.weight": "get_output_embeddings"}


def load_drafter(path: Path, target: LoadedModel) -> LoadedDrafter:
    """Check, load, attach. Raises CheckpointRefused with the key or the tensor at fault."""
    config, raw = DrafterConfig.load(path)
    _check_target(path, config, target)
    tensors = _tensors(path)
    digest = _digest(tensors)
    module: Any = target.module
    for name, getter in COPIES.items():
        _check_copy(path, name, tensors.pop(name, None), getattr(module, getter)().weight)
    with torch.device(target.device):
        model = DSparkModel(config, AutoConfig.for_model(config.model_type, **_without(raw, "model_type")))
    model = model.to(target.dtype)
    _check_names(path, model, tensors)
    model.load_state_dict({name: tensor.to(target.dtype) for name, tensor in tensors.items()})
    entries = attach_backbone(model.eval().requires_grad_(False))
    pack_linears(model)
    fingerprint = {"architecture": config.architecture, "weights": digest}
    return LoadedDrafter(
        model, module.get_input_embeddings(), module.get_output_embeddings(), tuple(entries), fingerprint
    )


def _without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def _check_target(path: Path, config: DrafterConfig, target: LoadedModel) -> None:
    theirs = target.config
    for key, wanted, found in (
        ("num_target_layers", config.num_target_layers, theirs.num_hidden_layers),
        ("hidden_size", config.hidden_size, theirs.hidden_size),
        ("vocab_size", config.vocab_size, theirs.vocab_size),
    ):
        if wanted != found:
            raise CheckpointRefused(f"drafter {path}: made for a target with {key} {wanted}; this one has {found}")


def _tensors(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointRefused(f"drafter {path}: no *.safetensors file; pickled weights are never loaded")
    return {name: tensor for file in files for name, tensor in _stored(file)}


def _stored(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, stored.get_tensor(name)
    except Exception as error:
        raise CheckpointRefused(f"drafter {file}: {error}") from error


def _digest(tensors: dict[str, Tensor]) -> str:
    """Names a drafter by all its bytes: it is small."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        content.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _check_copy(path: Path, name: str, copy: Tensor | None, own: Tensor) -> None:
    """A copy of the target's matrix is fine; another matrix means another target."""
    if copy is None:
        return
    own = own.to_dense() if own.is_mkldnn else own
    if copy.shape != own.shape or not torch.equal(copy.to(own.dtype).to(own.device), own):
        raise CheckpointRefused(f"drafter {path}: {name} is not the target's own: it was made for another target")


def _check_names(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
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
