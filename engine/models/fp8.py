"""Block-scaled fp8 checkpoints (DeepSeek-V3 as published), dequantised at load.

A weight [N, K] comes with `NAME_scale_inv` [ceil(N / 128), ceil(K / 128)]: one scale for each block, the last of a row
or column perhaps partial. transformers 5.24 splits the weight evenly into as many blocks as there are scales, which
is wrong, or an error, when a side is no multiple of 128 (DeepSeek-V3's `kv_a_proj_with_mqa` has 576 rows).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SCALE = "_scale_inv"


def dequantise(weight_NK: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """weight x the scale of its block, float32."""
    rows, columns = weight_NK.shape
    scale_NK = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight_NK.float() * scale_NK


def dequantised_state(
    files: Sequence[Path], block: tuple[int, int] | None, dtype: torch.dtype, prefix: str = ""
) -> dict[str, Tensor]:
    """Every tensor of a checkpoint whose name begins with `prefix`; scales are folded into their weights, whichever
    file they are in, and the product is at `dtype`. All others are as stored. Without scales, `block` is None."""
    raw: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:  # type: ignore[no-untyped-call]
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            raw.update({name: tensors.get_tensor(name) for name in names})
    state = {}
    for name in [name for name in raw if not name.endswith(SCALE)]:
        tensor, scale = raw.pop(name), raw.get(name + SCALE)
        state[name] = tensor if scale is None or block is None else dequantise(tensor, scale, block).to(dtype)
    return state
