"""What computes faster than torch's own, and gives the same numbers up to rounding.

native.py    kernels.cpp, built when the package is installed: float32 on AVX2 and AVX-512
linear.py    packed matrices: ours, or oneDNN's
norm.py      RMSNorm
experts.py   a layer's experts
attention.py attention over pages where they lie
"""

from torch import nn

from engine.kernels.experts import faster_experts
from engine.kernels.linear import NativeLinear, PackedLinear, dense, faster_linear
from engine.kernels.native import library
from engine.kernels.norm import faster_norm

__all__ = ["dense", "use_kernels"]


def use_kernels(model: nn.Module) -> str:
    """Replace every layer of `model` that there is something faster for here, and say what computes it now. Unknown
    classes stay as they are; a head that shares the embedding's matrix gets a copy of its own, because the embedding
    has to be read by row."""
    native = library()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if type(child) is nn.Linear:
                setattr(parent, name, faster_linear(child, native))
            elif kind.endswith("RMSNorm"):
                setattr(parent, name, faster_norm(child, native))
            elif kind.endswith("Experts"):
                setattr(parent, name, faster_experts(child, native))
    kinds = {type(layer) for layer in model.modules()}
    if native is not None and NativeLinear in kinds:
        return native.name
    return "oneDNN" if PackedLinear in kinds else "torch"
