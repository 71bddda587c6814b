"""Grouped-query attention over pages: Qwen3 (full and sliding layers) and Llama.

T = tokens, H = query heads, G = key heads, D = head size
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.paged import attend
from engine.batch import Batch
from engine.pages import Entry, PageStore


class PagedGQA(nn.Module):
    """Takes over the submodules of a transformers GQA module, with or without per-head q and k norms."""

    q_proj: nn.Module
    q_norm: nn.Module
    k_proj: nn.Module
    k_norm: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, attention: Any) -> None:
        super().__init__()
        for name, child in attention.named_children():
            setattr(self, name, child)
        if not hasattr(attention, "q_norm"):
            self.q_norm = self.k_norm = nn.Identity()
        self.layer: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.num_key_heads: int = attention.k_proj.out_features // self.head_dim
        self.entry = Entry(
            layer=self.layer,
            name="k",
            shape=(self.num_key_heads, self.head_dim),
            dtype=attention.k_proj.weight.dtype,
            window=getattr(attention, "sliding_window", None),
        )
        rotate: Callable[..., tuple[Tensor, Tensor]] = import_module(type(attention).__module__).apply_rotary_pos_emb
        self.rotate = rotate

    @property
    def entries(self) -> list[Entry]:
        e = self.entry
        return [e, Entry(layer=e.layer, name="v", shape=e.shape, dtype=e.dtype, window=e.window)]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        batch: Batch,
        store: PageStore,
        **_: object,
    ) -> tuple[Tensor, None]:
        hidden_TD = hidden_states[0]
        q_THD = self.q_norm(self.q_proj(hidden_TD).unflatten(-1, (-1, self.head_dim)))
        k_TGD = self.k_norm(self.k_proj(hidden_TD).unflatten(-1, (-1, self.head_dim)))
        v_TGD = self.v_proj(hidden_TD).unflatten(-1, (-1, self.head_dim))
        cos, sin = position_embeddings
        q_1THD, k_1TGD = self.rotate(q_THD[None], k_TGD[None], cos, sin, unsqueeze_dim=2)
        group = self.entry.group
        slots = batch.slots[group]
        k_slab = store.slab(("target", self.layer, "k"))
        v_slab = store.slab(("target", self.layer, "v"))
        k_slab.write(slots.page_T, slots.offset_T, k_1TGD[0])
        v_slab.write(slots.page_T, slots.offset_T, v_TGD)
        outputs = []
        for segment in batch.segments:
            keys = segment.keys[group]
            k_RKGD, v_RKGD = k_slab.gather(keys.pages_RP), v_slab.gather(keys.pages_RP)
            out_RQHD = attend(segment.pad(q_1THD[0]), k_RKGD, v_RKGD, keys.mask_R1QK, self.scaling)
            outputs.append(segment.unpad(out_RQHD))
        out_THD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.o_proj(out_THD.flatten(1))[None], None
