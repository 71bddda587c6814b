"""What computes faster than torch's own, and gives the same numbers up to rounding.

native.py       kernels.cpp, built when the package is installed: float32 on AVX2 and AVX-512
program.py      lists of its operations, which one call runs
linear.py       packed matrices: ours, or oneDNN's
norm.py         RMSNorm
feedforward.py  MLPs and experts
attention.py    attention over pages where they lie
layer.py        all of a decoder layer
"""

from torch import nn

from engine.kernels.attention import faster_attention
from engine.kernels.feedforward import faster_mlp, faster_moe
from engine.kernels.layer import run_whole
from engine.kernels.linear import NativeLinear, PackedLinear, dense, faster_linear
from engine.kernels.native import Library, library, suits
from engine.kernels.norm import PLAIN, NativeRMSNorm

__all__ = ["dense", "use_kernels"]


def use_kernels(model: nn.Module) -> str:
    """Replace every layer of `model` that there is something faster for here, and say what computes it now. Unknown
    classes stay as they are; a head that shares the embedding's matrix gets a copy of its own, because the embedding
    has to be read by row."""
    native = library()
    for parent, name, child in _children(model):
        if type(child) is nn.Linear:
            setattr(parent, name, faster_linear(child, native))
        elif native is not None and type(child).__name__ in PLAIN and suits(child.weight):  # type: ignore[arg-type]
            setattr(parent, name, NativeRMSNorm(child, native))
    if native is not None:
        _compose(model, native)
    kinds = {type(layer) for layer in model.modules()}
    if native is not None and NativeLinear in kinds:
        return native.name
    return "oneDNN" if PackedLinear in kinds else "torch"


def _compose(model: nn.Module, native: Library) -> None:
    """Modules of several layers become one call each: the inner ones first, of which the outer ones are made."""
    makers = {"MLP": faster_mlp, "MoE": faster_moe, "Moe": faster_moe, "MLA": faster_attention, "GQA": faster_attention}
    for suffix, faster in makers.items():
        for parent, name, child in _children(model):
            if type(child).__name__.endswith(suffix):
                setattr(parent, name, faster(child, native))
    for layer in model.modules():
        run_whole(layer, native)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
