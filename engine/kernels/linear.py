"""Linear layers on a CPU, their matrices kept in the order that a kernel reads.

torch calls MKL for a float32 `nn.Linear`, which packs the matrix anew on every call; for the 1 to 32 tokens of a decode
step that costs more than the product. Packed once, at load, by us (float32) or by oneDNN (bfloat16, or where nothing
of ours was built).
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.native import Library, lossless, packed, unpacked

TYPICAL_TOKENS = 32  # a hint to oneDNN; its order suits other numbers too
LEAST_ELEMENTS = 2**17  # a call costs 13 us against MKL's 4 (2 cores, AVX-512), which a smaller matrix never earns back


class NativeLinear(nn.Module):
    """An `nn.Linear` in float32 whose matrix lies in panels; in bfloat16 ones if that changes no number of it."""

    panels: Tensor

    def __init__(self, linear: nn.Linear, library: Library) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        weight = linear.weight.detach()
        dtype = torch.bfloat16 if lossless(weight) else torch.float32
        self.register_buffer("panels", packed(weight, library.panel, dtype))
        self.bias = linear.bias
        self._product = library.product[dtype]
        self._bias = None if linear.bias is None else linear.bias.data_ptr()

    @property
    def weight(self) -> Tensor:
        """The matrix, unpacked anew each time."""
        return unpacked(self.panels, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in features] -> [..., out features]"""
        assert x.dtype == torch.float32
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        self._product(
            x.data_ptr(), self.panels.data_ptr(), self._bias, y.data_ptr(), rows, self.in_features, self.out_features
        )
        return y


class PackedLinear(nn.Module):
    """An `nn.Linear` whose `weight` is opaque: it has a shape and a dtype, and no element can be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        order = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_TOKENS)
        self.weight = nn.Parameter(order, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in features] -> [..., out features]"""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def faster_linear(linear: nn.Linear, library: Library | None) -> nn.Module:
    """The same layer, packed if there is a packed product for it here."""
    weight = linear.weight
    if weight.device.type != "cpu":
        return linear
    if library is not None and weight.dtype == torch.float32:
        return NativeLinear(linear, library)
    return PackedLinear(linear) if _is_packable(weight) else linear


def dense(layer: Any) -> Tensor:
    """The matrix of a linear layer or an embedding, packed or not."""
    weight: Tensor = layer.weight
    return weight.to_dense() if weight.is_mkldnn else weight


def _is_packable(weight: Tensor) -> bool:
    if weight.numel() < LEAST_ELEMENTS or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
