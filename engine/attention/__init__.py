"""Paged attention for the models of transformers: one file per family, which keeps the submodules it replaces.

paged.py   attention over gathered pages in torch, for every device; the reference for kernels
mla.py     DeepSeek-V2, V3, R1, ...: one latent and one rope key for all heads
gqa.py     Qwen3, Llama: keys and values per head, full or sliding window
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from engine.attention.gqa import PagedGQA
from engine.attention.mla import PagedMLA
from engine.pages import Entry
from engine.pages.layout import Part

PagedAttention = PagedMLA | PagedGQA

FAMILIES: dict[str, Callable[[Any, Part], PagedAttention]] = {
    "DeepseekV2Attention": PagedMLA,
    "DeepseekV3Attention": PagedMLA,
    "LlamaAttention": PagedGQA,
    "Qwen3Attention": PagedGQA,
}


def attach(model: nn.Module, part: Part = "target") -> list[Entry]:
    """Replace every attention module of `model` by one over pages, and return the entries that the layers cache.

    `model` is a *ForCausalLM of transformers, or a drafter made of such layers; `part` of a page is where they go.
    """
    entries: list[Entry] = []
    for parent, name, module in list(_attentions(model)):
        paged = FAMILIES[type(module).__name__](module, part)
        setattr(parent, name, paged)
        entries += paged.entries
    return entries


def _attentions(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child).__name__ in FAMILIES:
                yield parent, name, child
