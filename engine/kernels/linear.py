"""Linear layers on a CPU, with their matrices packed in the order in which a kernel reads them.

torch calls MKL for a float32 `nn.Linear`, which packs the matrix anew on every call; for the 1 to 32 tokens of a decode
step that costs more than the product. Here it is packed once, at load: by native.py (float32), or by oneDNN (bfloat16,
or where kernels.cpp was not built).
"""

import torch
from torch import Tensor, nn

from engine.kernels.native import Library, lossless, packed, suits, unpacked
from engine.kernels.program import NOWHERE, Product, Program, X, Y, run_by_row

TYPICAL_TOKENS = 32  # a hint to oneDNN; its order works for other numbers too
MIN_ELEMENTS = 2**17  # for smaller matrices the call itself (13 us, MKL 4; 2 cores, AVX-512) costs more than it saves


class Packed(nn.Module):
    """Matrices [..., N, K] in panels of `dtype`, by default bfloat16 if that changes no number, else float32."""

    panels: Tensor
    bias: Tensor | None = None

    def __init__(self, weight_NK: Tensor, library: Library, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape[-2:]
        dtype = dtype or (torch.bfloat16 if lossless(weight_NK) else torch.float32)
        self.register_buffer("panels", packed(weight_NK, library.panel, dtype))

    @property
    def weight(self) -> Tensor:
        """The matrices, unpacked on every access."""
        return unpacked(self.panels, self.out_features)

    @property
    def is_short(self) -> bool:
        return self.panels.dtype == torch.bfloat16

    @property
    def per_matrix(self) -> int:
        """Numbers in the panels of one matrix."""
        return self.panels.shape[-3] * self.panels.shape[-2] * self.panels.shape[-1]

    def product(self, x: int, y: int, add: int = NOWHERE, wait: bool = True) -> Product:
        """Return the operation y = x w^T + bias + add."""
        return self._product(1, x, self.in_features, y, self.out_features, add, wait)

    def by_head(self, x: int, x_row: int, y: int, y_row: int, wait: bool = True) -> Product:
        """Return the operation that multiplies each token's head h, at column h x_row / H of operand `x`, by matrix h,
        and stores it at column h y_row / H of `y`. `x_row` and `y_row` are the numbers from token to token."""
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
    """Replaces an `nn.Linear` in float32."""

    def __init__(self, linear: nn.Linear, library: Library) -> None:
        super().__init__(linear.weight.detach(), library)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._program = Program(library, [self.product(X, Y)], width=0)

    def forward(self, x: Tensor) -> Tensor:
        return run_by_row(self._program, x, self.out_features)


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear` by oneDNN's. Its `weight` is opaque: no element of it can be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        order = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_TOKENS)
        self.weight = nn.Parameter(order, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def faster_linear(linear: nn.Linear, library: Library | None) -> nn.Module:
    """Return a packed replacement for the layer if this machine has one, else the layer itself."""
    if library is not None and suits(linear.weight):
        return NativeLinear(linear, library)
    return PackedLinear(linear) if _is_packable(linear.weight) else linear


def dense(layer: nn.Module) -> Tensor:
    """Return the matrix of a linear layer or an embedding, packed or not."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.to_dense() if weight.is_mkldnn else weight


def _is_packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < MIN_ELEMENTS or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
