"""Linear layers on a CPU, their matrices kept in the order that a kernel reads.

torch calls MKL for a float32 `nn.Linear`, which packs the matrix anew on every call; for the 1 to 32 tokens of a decode
step that costs more than the product. Packed once, at load, by us (float32) or by oneDNN (bfloat16, or where nothing
of ours was built).
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.native import Library, lossless, packed, suits, unpacked
from engine.kernels.program import NOWHERE, Product, Program, X, Y, rows_through

TYPICAL_TOKENS = 32  # a hint to oneDNN; its order suits other numbers too
LEAST_ELEMENTS = 2**17  # a call costs 13 us against MKL's 4 (2 cores, AVX-512), which a smaller matrix never earns back


class Packed(nn.Module):
    """Matrices [..., N, K] in panels: of `dtype`, or in bfloat16 ones if that changes no number of them."""

    panels: Tensor
    bias: Tensor | None = None

    def __init__(self, weight_NK: Tensor, library: Library, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape[-2:]
        dtype = dtype or (torch.bfloat16 if lossless(weight_NK) else torch.float32)
        self.register_buffer("panels", packed(weight_NK, library.panel, dtype))

    @property
    def weight(self) -> Tensor:
        """The matrices, unpacked anew each time."""
        return unpacked(self.panels, self.out_features)

    @property
    def is_short(self) -> bool:
        return self.panels.dtype == torch.bfloat16

    @property
    def per_matrix(self) -> int:
        """Numbers in the panels of one."""
        return self.panels.shape[-3] * self.panels.shape[-2] * self.panels.shape[-1]

    def product(self, x: int, y: int, add: int = NOWHERE, wait: bool = True) -> Product:
        """As an operation: y = x w^T + bias + add."""
        return self._product(1, x, self.in_features, y, self.out_features, add, wait)

    def by_head(self, x: int, x_row: int, y: int, y_row: int, wait: bool = True) -> Product:
        """Head h of every token, from columns h x_row / H of the place `x`, x_row apart, times matrix h, to columns
        h y_row / H of the place `y`."""
        return self._product(self.panels.shape[0], x, x_row, y, y_row, NOWHERE, wait)

    def _product(self, heads: int, x: int, x_row: int, y: int, y_row: int, add: int, wait: bool) -> Product:
        return Product(
            x=x,
            y=y,
            add=add,
            is_short=self.is_short,
            w=self.panels,
            bias=self.bias,
            H=heads,
            K=self.in_features,
            N=self.out_features,
            x_row=x_row,
            x_head=x_row // heads,
            y_row=y_row,
            y_head=y_row // heads,
            w_head=self.per_matrix,
            wait=wait,
        )


class NativeLinear(Packed):
    """An `nn.Linear` in float32."""

    def __init__(self, linear: nn.Linear, library: Library) -> None:
        super().__init__(linear.weight.detach(), library)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._program = Program(library, [self.product(X, Y)], width=0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in features] -> [..., out features]"""
        return rows_through(self._program, x, self.out_features)


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
    if library is not None and suits(linear.weight):
        return NativeLinear(linear, library)
    return PackedLinear(linear) if _is_packable(linear.weight) else linear


def dense(layer: Any) -> Tensor:
    """The matrix of a linear layer or an embedding, packed or not."""
    weight: Tensor = layer.weight
    return weight.to_dense() if weight.is_mkldnn else weight


def _is_packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < LEAST_ELEMENTS or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
