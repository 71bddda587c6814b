"""Grouped-query attention over pages: Qwen3 (full and sliding layers) and Llama.

T = tokens, H = query heads, G = key heads, D = head size
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.attention.paged import gathered
from engine.batch import Batch, Positions, Segment
from engine.pages import Entry, PageStore, Slab
from engine.pages.layout import Part


class GQA(Protocol):
    """A GQA module of transformers."""

    layer_idx: int
    head_dim: int
    scaling: float
    k_proj: nn.Linear

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...


class PagedGQA(nn.Module):
    """Takes over the submodules of a transformers GQA module, with or without per-head q and k norms."""

    q_proj: nn.Module
    q_norm: nn.Module
    k_proj: nn.Module
    k_norm: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, attention: GQA, part: Part = "target") -> None:
        super().__init__()
        for name, child in attention.named_children():
            setattr(self, name, child)
        if not hasattr(attention, "q_norm"):
            self.q_norm = self.k_norm = nn.Identity()
        self.layer, self.head_dim, self.scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self.num_key_heads = attention.k_proj.out_features // self.head_dim
        self.entry = Entry(
            layer=self.layer,
            name="k",
            shape=(self.num_key_heads, self.head_dim),
            dtype=attention.k_proj.weight.dtype,
            window=getattr(attention, "sliding_window", None),
            part=part,
        )
        rotate: Callable[..., tuple[Tensor, Tensor]] = import_module(type(attention).__module__).apply_rotary_pos_emb
        self.rotate = rotate

    @property
    def entries(self) -> list[Entry]:
        return [self.entry, replace(self.entry, name="v")]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        **_: object,
    ) -> tuple[Tensor, None]:
        hidden_TD = hidden_states[0]
        q_THD = self.q_norm(self.q_proj(hidden_TD).unflatten(-1, (-1, self.head_dim)))
        q_1THD = self.write_cache(hidden_TD, position_embeddings, batch, store, q_THD)
        outputs = [self.attention_of(segment, q_1THD[0, segment.tokens], store) for segment in batch.segments]
        out_THD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.o_proj(out_THD.flatten(1))[None], None

    def attention_of(self, segment: Segment, q_THD: Tensor, store: PageStore) -> Tensor:
        """Compute attention of a segment's queries. [T, H, D]"""
        keys = segment.keys[self.entry.group]
        return gathered(q_THD, *self._slabs(store), self.head_dim, segment, keys, self.scaling)

    def write_cache(
        self,
        hidden_TD: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        q_THD: Tensor | None = None,
    ) -> Tensor:
        """Write the tokens' keys and values into their slots; return the queries, if given, after rotation."""
        k_TGD = self.k_norm(self.k_proj(hidden_TD).unflatten(-1, (-1, self.head_dim)))
        v_TGD = self.v_proj(hidden_TD).unflatten(-1, (-1, self.head_dim))
        cos, sin = position_embeddings
        rotated = k_TGD if q_THD is None else q_THD
        q_1THD, k_1TGD = self.rotate(rotated[None], k_TGD[None], cos, sin, unsqueeze_dim=2)
        slots = batch.slots[self.entry.group]
        k_slab, v_slab = self._slabs(store)
        k_slab.write(slots.page_T, slots.offset_T, k_1TGD[0])
        v_slab.write(slots.page_T, slots.offset_T, v_TGD)
        return q_1THD

    def _slabs(self, store: PageStore) -> tuple[Slab, Slab]:
        part, layer, _ = self.entry.key
        return store.slab((part, layer, "k")), store.slab((part, layer, "v"))
