"""Multi-head latent attention over pages: DeepSeek-V2, V3 and their kin.

The cache holds, per token and layer, one latent (after its norm) and one rope key, for all heads together.

    absorbed   q_nope W_UK attends to the latents themselves, and the weighted sum of latents goes through W_UV:
               little work per key, much per query. For decode, verify and short extends.
    expanded   keys and values of every head are computed from the latents first: much work per key, little per query.
               For long prefill chunks.

Both use the same two matrices, split from kv_b_proj once, so they differ by rounding only.

T = tokens, R = rows, Q = queries, K = keys, H = heads, N = nope size, P = rope size, V = value size, L = latent size
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from engine.attention.paged import attend, gathered
from engine.batch import Batch, Keys, Positions, Segment
from engine.pages import Entry, PageStore, Slab
from engine.pages.layout import Part

Rotate = Callable[[Tensor, Tensor, Positions], tuple[Tensor, Tensor]]
Rotation = Literal["halves", "pairs to halves", "pairs"]


class RopeConfig(Protocol):
    rope_interleave: bool


class MLA(Protocol):
    """An MLA module of transformers."""

    config: RopeConfig
    layer_idx: int
    num_heads: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    kv_lora_rank: int
    q_lora_rank: int | None
    scaling: float
    kv_b_proj: nn.Linear

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...


def rotation(attention: MLA) -> tuple[Rotate, Rotation]:
    """Return how this module's model rotates queries and keys [1, T, heads, P], given its position embeddings, and
    which numbers that combines and where it stores them."""
    model = import_module(type(attention).__module__)
    if hasattr(model, "apply_rotary_emb"):  # DeepSeek-V2: one complex tensor, heads before tokens
        turn = model.apply_rotary_emb

        def turn_complex(q_1THP: Tensor, k_1T1P: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
            q_1HTP, k_11TP = turn(q_1THP.transpose(1, 2), k_1T1P.transpose(1, 2), positions)
            return q_1HTP.transpose(1, 2), k_11TP.transpose(1, 2)

        return turn_complex, "pairs"
    pairs = attention.config.rope_interleave
    turn_real = model.apply_rotary_pos_emb_interleave if pairs else model.apply_rotary_pos_emb

    def turn_halves(q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        q, k = turn_real(q, k, *positions, unsqueeze_dim=2)
        return q, k

    return turn_halves, "pairs to halves" if pairs else "halves"


class HasWeight(Protocol):
    @property
    def weight(self) -> Tensor: ...


class PerHead(nn.Module):
    """One matrix for each head: `weight` [H, out, in]."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())


class PagedMLA(nn.Module):
    """Takes over the submodules of a transformers MLA module; `kv_b_proj` becomes `w_uk` and `w_uv`."""

    q_proj: nn.Module  # this one, or the next three
    q_a_proj: nn.Module
    q_a_layernorm: nn.Module
    q_b_proj: nn.Module
    kv_a_proj_with_mqa: nn.Module
    kv_a_layernorm: nn.Module
    o_proj: nn.Module
    w_uk: HasWeight  # [H, L, N]; PerHead, or packed by engine/kernels
    w_uv: HasWeight  # [H, V, L]

    def __init__(self, attention: MLA, part: Part = "target") -> None:
        super().__init__()
        for name, child in attention.named_children():
            if name != "kv_b_proj":
                setattr(self, name, child)
        self.layer, self.num_heads, self.scaling = attention.layer_idx, attention.num_heads, attention.scaling
        self.nope, self.rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
        self.value, self.latent = attention.v_head_dim, attention.kv_lora_rank
        self.compressed_queries = attention.q_lora_rank is not None
        self.rotate, self.rotation = rotation(attention)
        self.entry = Entry(
            layer=self.layer,
            name="latent",
            shape=(self.latent + self.rope,),
            dtype=attention.kv_b_proj.weight.dtype,
            window=getattr(attention, "sliding_window", None),
            part=part,
        )
        weight_HNL = attention.kv_b_proj.weight.detach().view(self.num_heads, self.nope + self.value, self.latent)
        w_uk_HNL, w_uv_HVL = weight_HNL.split([self.nope, self.value], dim=1)
        self.w_uk, self.w_uv = PerHead(w_uk_HNL.mT), PerHead(w_uv_HVL)

    @property
    def entries(self) -> list[Entry]:
        return [self.entry]

    @cached_property
    def absorbed_queries(self) -> int:
        """The number of queries per row up to which absorbing costs fewer multiplications than expanding.

        Per key and head: absorbed Q (2 L + P), expanded Q (N + P + V) + L (N + V).
        """
        per_query = 2 * self.latent - self.nope - self.value
        return self.latent * (self.nope + self.value) // per_query if per_query > 0 else 2**31

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        **_: object,
    ) -> tuple[Tensor, None]:
        hidden_TD = hidden_states[0]
        q_nope_THN, q_rope_THP = self._queries(hidden_TD)
        q_rope_1THP = self.write_cache(hidden_TD, position_embeddings, batch, store, q_rope_THP)
        outputs = []
        for segment in batch.segments:
            own = segment.tokens
            outputs.append(self.attention_of(segment, q_nope_THN[own], q_rope_1THP[0, own], store))
        out_THV = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.o_proj(out_THV.flatten(1))[None], None

    def attention_of(self, segment: Segment, q_nope_THN: Tensor, q_rope_THP: Tensor, store: PageStore) -> Tensor:
        """Compute attention of a segment's queries. [T, H, V]"""
        attention = self._absorbed if segment.num_queries <= self.absorbed_queries else self._expanded
        return attention(segment, segment.keys[self.entry.group], q_nope_THN, q_rope_THP, store.slab(self.entry.key))

    def write_cache(
        self,
        hidden_TD: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        q_rope_THP: Tensor | None = None,
    ) -> Tensor:
        """Write the tokens' latents and rope keys into their slots; return the queries, if given, after rotation."""
        latent_TL, k_rope_TP = self.kv_a_proj_with_mqa(hidden_TD).split([self.latent, self.rope], dim=-1)
        latent_TL, k_rope_1T1P = self.kv_a_layernorm(latent_TL), k_rope_TP[None, :, None]
        rotated = k_rope_1T1P if q_rope_THP is None else q_rope_THP[None]
        q_rope_1THP, k_rope_1T1P = self.rotate(rotated, k_rope_1T1P, position_embeddings)
        slots = batch.slots[self.entry.group]
        entry_TC = torch.cat([latent_TL, k_rope_1T1P[0, :, 0]], dim=-1)
        store.slab(self.entry.key).write(slots.page_T, slots.offset_T, entry_TC)
        return q_rope_1THP

    def _queries(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Project to [T, H, N] and [T, H, P]."""
        if self.compressed_queries:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_TD)))
        else:
            q = self.q_proj(hidden_TD)
        q_nope_THN, q_rope_THP = q.unflatten(-1, (self.num_heads, -1)).split([self.nope, self.rope], dim=-1)
        return q_nope_THN, q_rope_THP

    def _absorbed(self, segment: Segment, keys: Keys, q_nope: Tensor, q_rope: Tensor, slab: Slab) -> Tensor:
        q_latent_THL = (q_nope.transpose(0, 1) @ self.w_uk.weight.mT).transpose(0, 1)
        q_THC = torch.cat([q_latent_THL, q_rope], dim=-1)
        out_THL = gathered(q_THC, slab, slab, self.latent, segment, keys, self.scaling)
        out_THV: Tensor = (out_THL.transpose(0, 1) @ self.w_uv.weight.mT).transpose(0, 1)
        return out_THV

    def _expanded(self, segment: Segment, keys: Keys, q_nope: Tensor, q_rope: Tensor, slab: Slab) -> Tensor:
        q_RQHD = segment.pad(torch.cat([q_nope, q_rope], dim=-1))
        latent_RKL, rope_RKP = slab.gather(keys.pages_RP).split([self.latent, self.rope], dim=-1)
        k_nope_RKHN = torch.einsum("rkl,hln->rkhn", latent_RKL, self.w_uk.weight)
        k_rope_RKHP = rope_RKP[:, :, None].expand(-1, -1, self.num_heads, -1)
        v_RKHV = torch.einsum("rkl,hvl->rkhv", latent_RKL, self.w_uv.weight)
        k_RKHD = torch.cat([k_nope_RKHN, k_rope_RKHP], dim=-1)
        return segment.unpad(attend(q_RQHD, k_RKHD, v_RKHV, keys.mask_R1QK, self.scaling))
