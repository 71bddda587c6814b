"""Our attention in transformers' models: one file per family, each keeping the submodules of the one it replaces.

paged.py   scores, mask and sum over gathered pages (the reference every device can run)
mla.py     DeepSeek-V2, V3, R1, ...: one latent and one rope key for all heads
gqa.py     Qwen3, Llama: keys and values by head, full or sliding
"""

from collections.abc import Iterator

from torch import nn

from engine.attention.gqa import PagedGQA
from engine.attention.mla import PagedMLA
from engine.pages import Entry
from engine.pages.layout import Part

PagedAttention = PagedMLA | PagedGQA

FAMILIES: dict[str, type[PagedMLA] | type[PagedGQA]] = {
    "DeepseekV2Attention": PagedMLA,
    "DeepseekV3Attention": PagedMLA,
    "LlamaAttention": PagedGQA,
    "Qwen3Attention": PagedGQA,
}


def attach(model: nn.Module, part: Part = "target") -> list[Entry]:
    """Replace every attention module of `model` (a transformers *ForCausalLM, or a drafter made of such layers), over
    that part of the pages, and return what the layers cache."""
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
