"""The training forward of a DSpark drafter: many blocks of every sequence at once.

The modules are those that the engine drafts with (engine/drafters/dspark.py), with transformers' own attention
instead of pages. Every block begins at an anchor: its rows see the context strictly before it, and each other.

    context    keys and values (or latents) made from `DSparkModel.context` as it is, without the layer's input norm
    block      the anchor's token and block_size - 1 mask tokens, at its position and the next ones
    row k      drafts the token k + 1 places behind the anchor, told (teacher forcing) the sequence's token before

Blocks are attended to in packs of neighbours. A pack sees the context up to its last anchor and its own rows, so its
mask is as small as it is, and nothing of the size (all rows x all places) is ever made.

B = sequences, T = tokens of a sequence, N = anchors of a sequence, K = rows of a block, R = B * N * K, D = hidden size,
V = vocabulary, M = rank of the Markov head, P = rope size, H = heads
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from train.target import Target

BLOCK_ATTENTION = "packed_blocks"
PACK_ANCHORS = 8


def block_mask(anchor_BN: Tensor, block_size: int, num_context: int) -> Tensor:
    """Which keys (the context's, then all blocks' rows) each block row sees. bool[B, 1, N * K, T + N * K]"""
    anchor_BS = anchor_BN.repeat_interleave(block_size, dim=1)
    context_BST = torch.arange(num_context, device=anchor_BN.device) < anchor_BS[..., None]
    block_S = torch.arange(anchor_BN.shape[1], device=anchor_BN.device).repeat_interleave(block_size)
    own_SS = block_S[:, None] == block_S
    return torch.cat([context_BST, own_SS.expand(len(anchor_BN), -1, -1)], dim=-1)[:, None]


@dataclass(frozen=True)
class Pack:
    """Neighbouring blocks: `rows` of all block rows, which see the first `reach` places of the context."""

    rows: slice
    reach: int
    mask_B1SJ: Tensor


def packs(anchor_BN: Tensor, block_size: int, at_once: int = PACK_ANCHORS) -> list[Pack]:
    """Of anchors that ascend in every sequence."""
    found = []
    for first in range(0, anchor_BN.shape[1], at_once):
        some_BN = anchor_BN[:, first : first + at_once]
        reach = int(some_BN.max())
        rows = slice(first * block_size, (first + some_BN.shape[1]) * block_size)
        found.append(Pack(rows, reach, block_mask(some_BN, block_size, reach)))
    return found


def packed_blocks(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BGJD: Tensor,
    value_BGJE: Tensor,
    attention_mask: None,
    scaling: float,
    packs: list[Pack],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of block rows to the context's keys, which come first, and to their own block's: `[B, S, H, E]`.

    Values are padded to the keys' size, and key heads repeated, for PyTorch's fused CPU kernel.
    """
    size, repeats = value_BGJE.shape[-1], query_BHSD.shape[1] // key_BGJD.shape[1]
    if repeats > 1:
        key_BGJD, value_BGJE = (x.repeat_interleave(repeats, dim=1) for x in (key_BGJD, value_BGJE))
    value_BGJD = functional.pad(value_BGJE, (0, query_BHSD.shape[-1] - size))
    context = key_BGJD.shape[2] - query_BHSD.shape[2]
    parts = []
    for pack in packs:
        own = slice(context + pack.rows.start, context + pack.rows.stop)
        keys, values = (torch.cat([x[:, :, : pack.reach], x[:, :, own]], dim=2) for x in (key_BGJD, value_BGJD))
        queries = query_BHSD[:, :, pack.rows]
        parts.append(functional.scaled_dot_product_attention(queries, keys, values, pack.mask_B1SJ, scale=scaling))
    return torch.cat(parts, dim=2)[..., :size].transpose(1, 2), None


AttentionInterface.register(BLOCK_ATTENTION, packed_blocks)  # type: ignore[arg-type]


@dataclass
class ContextEntries:
    """One layer's keys and values of the context, in the place of a cache: the block's are put behind them."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, attention: Any, context_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> ContextEntries:
        """What `attention` would cache of the context: latents and rope keys (MLA), or keys and values."""
        model = import_module(type(attention).__module__)
        if hasattr(attention, "kv_lora_rank"):
            sizes = [attention.kv_lora_rank, attention.qk_rope_head_dim]
            latent_BTL, key_BTP = attention.kv_a_proj_with_mqa(context_BTD).split(sizes, dim=-1)
            pairs = attention.config.rope_interleave
            rotate = model.apply_rotary_pos_emb_interleave if pairs else model.apply_rotary_pos_emb
            key_B1TP = key_BTP[:, None]
            return cls(attention.kv_a_layernorm(latent_BTL)[:, None], rotate(key_B1TP, key_B1TP, *rope)[1])
        key_BTGD, value_BTGD = (
            projection(context_BTD).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.k_proj, attention.v_proj)
        )
        key_BGTD = attention.k_norm(key_BTGD).transpose(1, 2)
        return cls(model.apply_rotary_pos_emb(key_BGTD, key_BGTD, *rope)[1], value_BTGD.transpose(1, 2))

    def update(self, first: Tensor, second: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """transformers' cache protocol."""
        return torch.cat([self.first, first], dim=2), torch.cat([self.second, second], dim=2)


def new_drafter(raw: dict[str, Any], config: DrafterConfig, std: float) -> DSparkModel:
    """A drafter to be trained: normal matrices; a Markov head that adds nothing yet; norms one."""
    backbone = AutoConfig.for_model(config.model_type, **{key: raw[key] for key in raw if key != "model_type"})
    backbone._attn_implementation = BLOCK_ATTENTION
    model = DSparkModel(config, backbone).float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.0 if "markov_w2" in name else std)
    return model


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a batch are. `token_BT` is padded behind each sequence's end; anchors ascend."""

    token_BT: Tensor
    anchor_BN: Tensor
    block_size: int

    @property
    def place_BNK(self) -> Tensor:
        """The positions of the blocks' rows."""
        return self.anchor_BN[..., None] + torch.arange(self.block_size, device=self.anchor_BN.device)

    def at(self, values_BT: Tensor, ahead: int = 0) -> Tensor:
        """`[B, T, ...] -> [R, ...]`: what is at the blocks' places, or `ahead` of them; the last one past the end."""
        place_BS = (self.place_BNK + ahead).clamp(max=values_BT.shape[1] - 1).flatten(1)
        sequence_B1 = torch.arange(len(place_BS), device=place_BS.device)[:, None]
        return values_BT[sequence_B1, place_BS].flatten(0, 1)


def block_hidden(model: DSparkModel, target: Target, context_BTD: Tensor, blocks: Blocks) -> Tensor:
    """The backbone's states after the final norm. [R, D]"""
    place_BNK = blocks.place_BNK
    ids_BNK = torch.full_like(place_BNK, model.config.mask_token_id)
    ids_BNK[..., 0] = blocks.token_BT.gather(1, blocks.anchor_BN)
    hidden_BSD = target.embed(ids_BNK.flatten(1))
    positions = torch.arange(blocks.token_BT.shape[1], device=place_BNK.device)[None]
    context_rope = model.rotary_emb(context_BTD, positions.expand(len(place_BNK), -1))
    block_rope = model.rotary_emb(hidden_BSD, place_BNK.flatten(1))
    packed = packs(blocks.anchor_BN, blocks.block_size)
    for layer in model.layers:
        entries = ContextEntries.of(layer.self_attn, context_BTD, context_rope)
        hidden_BSD = layer(hidden_BSD, attention_mask=None, position_embeddings=block_rope, cache=entries, packs=packed)
    hidden_RD: Tensor = model.norm(hidden_BSD).flatten(0, 1)
    return hidden_RD


@dataclass(frozen=True)
class Drafted:
    """What a drafter says in its blocks, before anything of the size of the vocabulary: `markov_RM` goes through the
    Markov head's W2 (None: no such head), `confidence_R` are logits (None: no such head)."""

    hidden_RD: Tensor
    markov_RM: Tensor | None
    confidence_R: Tensor | None


def draft(model: DSparkModel, target: Target, state_BTF: Tensor, blocks: Blocks) -> Drafted:
    """The blocks, told the sequences' own tokens. `state_BTF`: Target.states; what is behind a block's end is not
    seen."""
    taps_BTF = state_BTF[..., : -target.hidden_size]
    hidden_RD = block_hidden(model, target, model.hidden_norm(model.fc(taps_BTF)), blocks)
    head, features_RD = model.markov_head, hidden_RD
    markov_RM = None
    if head is not None:
        shape = (-1, blocks.block_size)
        before_RM = head.markov_w1(blocks.at(blocks.token_BT))
        before_RKM, hidden_RKD = before_RM.unflatten(0, shape), hidden_RD.unflatten(0, shape)
        state_RM, entered = head.start(len(before_RKM)), []
        for k in range(blocks.block_size):
            input_RM, state_RM = head.enter(before_RKM[:, k], hidden_RKD[:, k], state_RM)
            entered.append(input_RM)
        markov_RM = torch.stack(entered, dim=1).flatten(0, 1)
        if model.config.confidence_head_with_markov:
            features_RD = torch.cat([hidden_RD, before_RM], dim=-1)
    return Drafted(hidden_RD, markov_RM, None if model.confidence_head is None else model.confidence_head(features_RD))


def draft_logits(model: DSparkModel, target: Target, drafted: Drafted) -> Tensor:
    """`[R, V]`, for looking at; training never has them all at once (drafter_loss.py)."""
    logits_RV = drafted.hidden_RD.float() @ target.head_VD.T
    if model.markov_head is not None:
        logits_RV = logits_RV + model.markov_head.markov_w2(drafted.markov_RM)
    return logits_RV
