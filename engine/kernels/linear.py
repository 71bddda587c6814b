"""Linear layers on a CPU, their matrices kept in the order that oneDNN's kernels read.

torch calls MKL for a float32 `nn.Linear`, which packs the matrix anew on every call; for the 1 to 32 tokens of a
decode step that costs more than the product. oneDNN packs once, at load.
"""

import torch
from torch import Tensor, nn

TYPICAL_TOKENS = 32  # a hint to oneDNN; its order suits other numbers too
LEAST_ELEMENTS = 2**17  # a call costs 13 us against MKL's 4 (2 cores, AVX-512), which a smaller matrix never earns back


class PackedLinear(nn.Module):
    """An `nn.Linear` whose `weight` is opaque: it has a shape and a dtype, and no element can be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_TOKENS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in features] -> [..., out features]"""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def pack_linears(model: nn.Module) -> None:
    """Replace every `nn.Linear` that this processor has a packed product for. A head that shares the embedding's
    matrix gets a copy of its own, because the embedding has to be read by row.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _is_packable(child.weight):
                setattr(parent, name, PackedLinear(child))


def _is_packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < LEAST_ELEMENTS or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
