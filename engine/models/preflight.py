"""Checks of a checkpoint before anything is loaded: is it supported, complete, and does it fit into memory?

transformers would load pickles, dequantise with a warning, and fill missing weights with noise.
"""

import hashlib
import json
import os
import struct
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, PretrainedConfig

from engine.errors import CheckpointRefused

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM")
REFUSED_ROPE_TYPES = ("dynamic", "longrope")  # they depend on the longest position of the whole batch
SAMPLED_BLOCKS, SAMPLED_BYTES = 32, 4096


@dataclass(frozen=True)
class StoredTensor:
    name: str
    dtype: str  # as in safetensors: F32, BF16, F8_E4M3, ...
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class Preflight:
    """A checkpoint's `config.json` and safetensors headers."""

    path: Path
    config: PretrainedConfig
    architecture: str
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(t.num_bytes for t in self.tensors.values())

    @property
    def fp8_block(self) -> tuple[int, int] | None:
        """Rows and columns that share a scale, if the weights are fp8."""
        quantization = getattr(self.config, "quantization_config", None)
        return None if quantization is None else tuple(quantization["weight_block_size"])

    @property
    def config_without_quantization(self) -> PretrainedConfig:
        config = deepcopy(self.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the layers that will be loaded, with every weight in `dtype` and without scales."""
        layers = self.config.num_hidden_layers
        return sum(
            prod(t.shape) * dtype.itemsize
            for t in self.tensors.values()
            if not t.name.endswith("_scale_inv") and layer_of(t.name) < layers
        )

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Names the model by digests of its configuration, its tensors, and blocks sampled evenly from every file."""
        config = json.dumps(_read_json(self.path / "config.json"), sort_keys=True)
        names = sorted(f"{t.name} {t.dtype} {t.shape}" for t in self.tensors.values())
        content = hashlib.sha256("\n".join(names).encode())
        for file in self.files:
            content.update(_sampled(file))
        return {
            "architecture": self.architecture,
            "config": hashlib.sha256(config.encode()).hexdigest()[:16],
            "weights": content.hexdigest()[:16],
        }


def preflight(path: Path, dtype: torch.dtype, device: torch.device) -> Preflight:
    """Check, without loading weights, that a checkpoint can be served on this device.

    Raises CheckpointRefused, naming the file, the key or the numbers at fault.
    """
    found = examine(path)
    _check_memory(found, dtype, device)
    return found


def examine(path: Path) -> Preflight:
    """Check a checkpoint without regard to this machine's memory. Raises CheckpointRefused."""
    if not path.is_dir():
        raise CheckpointRefused(f"model.path {path}: no such directory")
    raw = _read_json(path / "config.json")
    architecture = (raw.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        served = ", ".join(ARCHITECTURES)
        raise CheckpointRefused(f"{path}/config.json: architecture {architecture} is not served ({served})")
    files = tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise CheckpointRefused(f"{path}: no *.safetensors file; pickled weights are never loaded")
    tensors = {t.name: t for file in files for t in stored_tensors(file)}
    _check_index(path, tensors)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    _check_rope(path, config)
    _check_quantization(path, config)
    found = Preflight(path, config, architecture, tensors, files)
    _check_shapes(found)
    return found


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`, including what torch has reserved and not used."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointRefused(f"{file}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointRefused(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointRefused(f"{file}: holds a {type(content).__name__}, not an object")
    return content


def stored_tensors(file: Path) -> list[StoredTensor]:
    """Read the header of a safetensors file: 8 bytes of length (little endian), then that many bytes of JSON.

    Raises CheckpointRefused if it is malformed or the file is too short.
    """
    size = os.path.getsize(file)
    with file.open("rb") as stream:
        start = stream.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (2**63,)
        if length > size - 8:
            raise CheckpointRefused(f"{file}: not a safetensors file (header of {length} bytes)")
        text = stream.read(length)
    try:
        header = {name: info for name, info in json.loads(text).items() if name != "__metadata__"}
        ranges = {name: tuple(map(int, info["data_offsets"])) for name, info in header.items()}
        found = [
            StoredTensor(name, info["dtype"], tuple(info["shape"]), ranges[name][1] - ranges[name][0])
            for name, info in header.items()
        ]
    except (ValueError, AttributeError, LookupError, TypeError):
        raise CheckpointRefused(f"{file}: not a safetensors file (its header describes no tensors)") from None
    end = 8 + length + max((data_end for _, data_end in ranges.values()), default=0)
    if end > size:
        raise CheckpointRefused(f"{file}: has {size} bytes, its header describes {end}: the file is incomplete")
    return found


def _check_index(path: Path, tensors: dict[str, StoredTensor]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    promised = _read_json(index).get("weight_map", {})
    absent = sorted(set(promised) - set(tensors))
    if absent:
        files = sorted({promised[name] for name in absent})
        raise CheckpointRefused(
            f"{index}: {len(absent)} of {len(promised)} tensors are in no file "
            f"(first: {absent[0]}; look for {', '.join(files[:3])})"
        )


def _check_rope(path: Path, config: PretrainedConfig) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    for parameters in by_layer_type or [rope]:
        kind = parameters.get("rope_type", "default")
        if kind in REFUSED_ROPE_TYPES:
            raise CheckpointRefused(
                f"{path}/config.json: rope type {kind} depends on the longest request of a batch, "
                "so one request would change the others' tokens; not served"
            )


def _check_quantization(path: Path, config: PretrainedConfig) -> None:
    """Refuse every quantization but block-scaled fp8, which is dequantised at load."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    method = quantization.get("quant_method")
    if method != "fp8" or not quantization.get("weight_block_size"):
        raise CheckpointRefused(
            f"{path}/config.json: quantization_config {method} is not served (fp8 with weight_block_size is)"
        )


def _check_shapes(found: Preflight) -> None:
    config = found.config
    wanted = (config.vocab_size, config.hidden_size)
    embedding = found.tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointRefused(f"{found.path}: no tensor model.embed_tokens.weight")
    if embedding.shape != wanted:
        raise CheckpointRefused(
            f"{found.path}: model.embed_tokens.weight is {list(embedding.shape)}, config.json says {list(wanted)}"
        )
    layers = {layer_of(name) for name in found.tensors} - {-1}
    missing = sorted(set(range(config.num_hidden_layers)) - layers)
    if missing:
        raise CheckpointRefused(
            f"{found.path}: num_hidden_layers is {config.num_hidden_layers}, layers {missing[:5]} have no tensor"
        )


def _check_memory(found: Preflight, dtype: torch.dtype, device: torch.device) -> None:
    needed, free = found.loaded_bytes(dtype), free_memory(device)
    if needed > free:
        raise CheckpointRefused(
            f"{found.path}: {gib(found.stored_bytes)} as stored become {gib(needed)} at {dtype} on {device}, "
            f"which has {gib(free)} free"
        )


def layer_of(name: str) -> int:
    """Return the N of `model.layers.N. ...`, or -1 for a tensor that belongs to no layer."""
    words = name.split(".")
    return int(words[2]) if words[:2] == ["model", "layers"] and words[2].isdigit() else -1


def _sampled(file: Path) -> bytes:
    size = os.path.getsize(file)
    step = max(1, size // SAMPLED_BLOCKS)
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for offset in range(0, size, step):
            stream.seek(offset)
            digest.update(stream.read(SAMPLED_BYTES))
    return digest.digest()
