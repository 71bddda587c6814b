"""Replacements for modules of torch and transformers that compute the same numbers, up to rounding, faster.

native.py       kernels.cpp, built when the package is installed: float32 on AVX2 and AVX-512
program.py      lists of its operations, run by one call
linear.py       packed matrices: ours, or oneDNN's
norm.py         RMSNorm
feedforward.py  MLPs and experts
attention.py    attention over pages in place
layer.py        a whole decoder layer
context.py      a drafter's cache entries for the target's tokens
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
    """Replace every layer of `model` that has a faster version here, and return the name of what computes it now.

    Unknown classes stay. A head that shares the embedding's matrix gets a copy, because the embedding is read by row.
    """
    native = library()
    for parent, name in _children(model):
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
    """Replace composite modules by one call each, inner ones first, because the outer ones are made of them."""
    makers = {"MLP": faster_mlp, "MoE": faster_moe, "Moe": faster_moe, "MLA": faster_attention, "GQA": faster_attention}
    for suffix, faster in makers.items():
        for parent, name in _children(model):
            child = getattr(parent, name)
            if type(child).__name__.endswith(suffix):
                setattr(parent, name, faster(child, native))
    for layer in model.modules():
        run_whole(layer, native)


def _children(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """List (parent, child's name) without the children: a replaced one must free its memory at once."""
    return [(parent, name) for parent in model.modules() for name, _ in parent.named_children()]
