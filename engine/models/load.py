"""Loads a checkpoint: transformers builds the model, then its attention is replaced by paged attention."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from engine.attention import attach
from engine.device import release_freed_memory
from engine.errors import CheckpointRefused
from engine.kernels import use_kernels
from engine.models.fp8 import dequantised_state
from engine.models.preflight import Preflight, layer_of, preflight
from engine.pages import Entry

logger = logging.getLogger("sparkpool")


@dataclass(frozen=True)
class LoadedModel:
    """A transformers model with paged attention. It has no cache, so several engines can share one.

    `files` and `fp8_block` are for reading the rest of its checkpoint, such as an MTP layer.
    """

    module: PreTrainedModel
    config: PretrainedConfig
    architecture: str
    entries: tuple[Entry, ...]
    fingerprint: dict[str, str]
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    kernels: str
    device: torch.device
    dtype: torch.dtype
    files: tuple[Path, ...]
    fp8_block: tuple[int, int] | None


def load_model(path: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Check, load and attach. Raises CheckpointRefused if a weight is missing or has another shape."""
    checked, began = preflight(path, dtype, device), time.monotonic()
    options: dict[str, object] = {"experts_implementation": "grouped_mm"} if _has_experts(checked.config) else {}
    if checked.fp8_block is not None:
        state = dequantised_state(checked.files, checked.fp8_block, dtype)
        options |= {"config": checked.config_without_quantization, "state_dict": state}
    with _quiet():
        model_class = getattr(transformers, checked.architecture)  # one of preflight's ARCHITECTURES
        module, report = model_class.from_pretrained(
            None if checked.fp8_block is not None else path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            device_map={"": device},
            ignore_mismatched_sizes=True,  # then they are reported, and refused here
            **options,
        )
    _check_report(path, report, checked.config.num_hidden_layers)
    module = module.eval().requires_grad_(False)
    entries = attach(module)
    num_parameters = sum(p.numel() for p in module.parameters())
    loaded = time.monotonic()
    kernels = use_kernels(module)
    release_freed_memory()
    seconds = f"{loaded - began:.1f} s, prepared for {kernels} in {time.monotonic() - loaded:.1f} s"
    logger.info(f"{path}: {num_parameters:,} parameters loaded in {seconds}")
    return LoadedModel(
        module=module,
        config=checked.config,
        architecture=checked.architecture,
        entries=tuple(entries),
        fingerprint={**checked.fingerprint, "dtype": str(dtype).removeprefix("torch.")},
        eos_token_ids=_eos_token_ids(path, checked.config),
        num_parameters=num_parameters,
        kernels=kernels,
        device=device,
        dtype=dtype,
        files=checked.files,
        fp8_block=checked.fp8_block,
    )


def entries_of(checked: Preflight, dtype: torch.dtype) -> list[Entry]:
    """Return the entries that a checkpoint's layers cache, from a model without storage."""
    with torch.device("meta"), _quiet():
        module = getattr(transformers, checked.architecture)._from_config(checked.config_without_quantization)
    return attach(module.to(dtype).eval().requires_grad_(False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading report and progress bar: `_check_report` reports more, and only errors."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _check_report(path: Path, report: dict[str, Collection[str]], num_layers: int) -> None:
    """Raise CheckpointRefused for missing, unknown or misshapen tensors, where transformers only warns.

    Layers beyond the last are MTP layers, which the target model does not need.
    """
    unknown = [key for key in report["unexpected_keys"] if layer_of(key) < num_layers and "rotary_emb" not in key]
    faults = {**report, "unexpected_keys": unknown}
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if faults[kind]:
            found = sorted(map(str, faults[kind]))
            raise CheckpointRefused(f"{path}: {len(found)} {kind.replace('_', ' ')}: {', '.join(found[:3])}")


def _has_experts(config: PretrainedConfig) -> bool:
    return any(getattr(config, key, None) for key in ("n_routed_experts", "num_experts", "num_local_experts"))


def _eos_token_ids(path: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """Return the end-of-text ids of generation_config.json, or else of config.json."""
    ids = config.eos_token_id
    if (path / "generation_config.json").exists():
        ids = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id or ids
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
