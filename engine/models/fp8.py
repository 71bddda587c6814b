"""Block-scaled fp8 checkpoints (DeepSeek-V3 as published), dequantised at load.

A weight [N, K] has a tensor `NAME_scale_inv` [ceil(N / 128), ceil(K / 128)]: a scale for each block, of which the last
of a row or column may be partial. transformers 5.24 splits the weight evenly into as many blocks as there are scales,
which is wrong, or an error, when a side is no multiple of 128 (DeepSeek-V3's `kv_a_proj_with_mqa` has 576 rows).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SCALE = "_scale_inv"


def dequantise(weight_NK: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Multiply a weight by the scales of its blocks, in float32."""
    rows, columns = weight_NK.shape
    scale_NK = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight_NK.float() * scale_NK


def dequantised_state(
    files: Sequence[Path], block: tuple[int, int] | None, dtype: torch.dtype, prefix: str = ""
) -> dict[str, Tensor]:
    """Load every tensor of a checkpoint whose name begins with `prefix`.

    Weights with scales are multiplied by them and converted to `dtype`; all others stay as stored. `block` is the
    (rows, columns) that share a scale, None without scales.
    """
    raw: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            raw.update({name: tensors.get_tensor(name) for name in names})
    state = {}
    for name in [name for name in raw if not name.endswith(SCALE)]:
        tensor, scale = raw.pop(name), raw.get(name + SCALE)
        state[name] = tensor if scale is None or block is None else dequantise(tensor, scale, block).to(dtype)
    return state
