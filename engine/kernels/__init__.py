"""What computes faster than torch's own, and gives the same numbers up to rounding.

native.py       kernels.cpp, built when the package is installed: float32 on AVX2 and AVX-512
program.py      lists of its operations, which one call runs
linear.py       packed matrices: ours, or oneDNN's
norm.py         RMSNorm
feedforward.py  MLPs and experts
attention.py    attention over pages where they lie
layer.py        all of a decoder layer
context.py      what a drafter keeps of the target's tokens
rotary.py       rotation angles
"""

from torch import nn

from engine.kernels.attention import faster_attention
from engine.kernels.context import native_context
from engine.kernels.feedforward import faster_mlp, faster_moe
from engine.kernels.layer import run_whole
from engine.kernels.linear import NativeLinear, PackedLinear, dense, faster_linear
from engine.kernels.native import Library, library, suits
from engine.kernels.norm import PLAIN, NativeRMSNorm
from engine.kernels.rotary import TabledRotary

__all__ = ["dense", "native_context", "use_kernels"]


def use_kernels(model: nn.Module) -> str:
    """Replace every layer of `model` that there is something faster for here, and say what computes it now. Unknown
    classes stay as they are; a head that shares the embedding's matrix gets a copy of its own, because the embedding
    has to be read by row."""
    native = library()
    for parent, name in _places(model):
        child = getattr(parent, name)
        if type(child) is nn.Linear:
            setattr(parent, name, faster_linear(child, native))
        elif native is not None and type(child).__name__ in PLAIN and suits(child.weight):
            setattr(parent, name, NativeRMSNorm(child, native))
        elif type(child).__name__.endswith("RotaryEmbedding") and child.inv_freq.device.type == "cpu":
            setattr(parent, name, TabledRotary(child))
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
        for parent, name in _places(model):
            child = getattr(parent, name)
            if type(child).__name__.endswith(suffix):
                setattr(parent, name, faster(child, native))
    for layer in model.modules():
        run_whole(layer, native)


def _places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where modules are. Not the modules themselves: what is replaced has to go at once, or memory holds both."""
    return [(parent, name) for parent in model.modules() for name, _ in parent.named_children()]
