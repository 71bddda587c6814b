"""The training forward of a DSpark drafter: many blocks of every sequence at once.

The modules are those of the engine's drafter (engine/drafters/dspark.py), with transformers' own attention instead of
pages. Every block begins at an anchor: its rows attend to the context strictly before it, and to each other.

    context    keys and values (or latents) made from `DSparkModel.context` directly, without the layer's input norm
    block      the anchor's token and block_size - 1 mask tokens, at its position and the next ones
    row k      drafts the token at anchor + k + 1; its Markov input is the sequence's token before (teacher forcing)

Attention is computed in packs of neighbouring blocks. A pack attends to the context up to its last anchor and to its
own rows, so its mask stays small, and nothing of the size (all rows x all positions) is ever made.

B = sequences, T = tokens of a sequence, N = anchors of a sequence, K = rows of a block, R = B * N * K, D = hidden size,
V = vocabulary, M = rank of the Markov head, P = rope size, H = heads
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from train.drafter.config import JsonObject
from train.drafter.target import FrozenTarget

BLOCK_ATTENTION = "packed_blocks"
PACK_ANCHORS = 8


def block_mask(anchor_BN: Tensor, block_size: int, num_context: int) -> Tensor:
    """Return which keys (context, then all blocks' rows) each block row attends to: bool[B, 1, N * K, T + N * K]."""
    anchor_BS = anchor_BN.repeat_interleave(block_size, dim=1)
    context_BST = torch.arange(num_context, device=anchor_BN.device) < anchor_BS[..., None]
    block_S = torch.arange(anchor_BN.shape[1], device=anchor_BN.device).repeat_interleave(block_size)
    own_SS = block_S[:, None] == block_S
    return torch.cat([context_BST, own_SS.expand(len(anchor_BN), -1, -1)], dim=-1)[:, None]


@dataclass(frozen=True)
class Pack:
    """Neighbouring blocks: `rows` of all block rows; they attend to at most the first `reach` context positions."""

    rows: slice
    reach: int
    mask_B1SJ: Tensor


def packs(anchor_BN: Tensor, block_size: int, pack_anchors: int = PACK_ANCHORS) -> list[Pack]:
    """Divide blocks, whose anchors ascend in every sequence, into packs."""
    found = []
    for first in range(0, anchor_BN.shape[1], pack_anchors):
        some_BN = anchor_BN[:, first : first + pack_anchors]
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
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the attention of block rows to the context's keys, which come first, and their own block: [B, S, H, E].

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


AttentionInterface.register(BLOCK_ATTENTION, packed_blocks)


@dataclass
class ContextEntries:
    """One layer's keys and values of the context, given to transformers as its cache: the block's are appended."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, attention: Any, context_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Self:
        """Compute what `attention` would cache of the context: latents and rope keys (MLA), or keys and values."""
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

    def update(self, first: Tensor, second: Tensor, layer: int, **_: object) -> tuple[Tensor, Tensor]:
        """Append a block's entries (transformers' cache protocol)."""
        return torch.cat([self.first, first], dim=2), torch.cat([self.second, second], dim=2)


def new_drafter(raw: JsonObject, config: DrafterConfig, std: float) -> DSparkModel:
    """Return an untrained drafter: matrices normal, norms one, a Markov head that adds zero."""
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
    """The positions of a batch's blocks. `token_BT` is padded behind each sequence's end; anchors ascend."""

    token_BT: Tensor
    anchor_BN: Tensor
    block_size: int

    @property
    def position_BNK(self) -> Tensor:
        """The positions of the blocks' rows."""
        return self.anchor_BN[..., None] + torch.arange(self.block_size, device=self.anchor_BN.device)

    def at(self, values_BT: Tensor, ahead: int = 0) -> Tensor:
        """Gather values at the blocks' positions, or `ahead` of them (at most the last): [B, T, ...] -> [R, ...]."""
        position_BS = (self.position_BNK + ahead).clamp(max=values_BT.shape[1] - 1).flatten(1)
        sequence_B1 = torch.arange(len(position_BS), device=position_BS.device)[:, None]
        return values_BT[sequence_B1, position_BS].flatten(0, 1)


def block_hidden(model: DSparkModel, target: FrozenTarget, context_BTD: Tensor, blocks: Blocks) -> Tensor:
    """Return the backbone's states after the final norm, [R, D]."""
    position_BNK = blocks.position_BNK
    ids_BNK = torch.full_like(position_BNK, model.config.mask_token_id)
    ids_BNK[..., 0] = blocks.token_BT.gather(1, blocks.anchor_BN)
    hidden_BSD = target.embed(ids_BNK.flatten(1))
    positions = torch.arange(blocks.token_BT.shape[1], device=position_BNK.device)[None]
    context_rope = model.rotary_emb(context_BTD, positions.expand(len(position_BNK), -1))
    block_rope = model.rotary_emb(hidden_BSD, position_BNK.flatten(1))
    packed = packs(blocks.anchor_BN, blocks.block_size)
    for layer in model.layers:
        entries = ContextEntries.of(layer.self_attn, context_BTD, context_rope)
        hidden_BSD = layer(hidden_BSD, attention_mask=None, position_embeddings=block_rope, cache=entries, packs=packed)
    hidden_RD: Tensor = model.norm(hidden_BSD).flatten(0, 1)
    return hidden_RD


@dataclass(frozen=True)
class DraftOutput:
    """A drafter's output before the projection to the vocabulary.

    `markov_RM` is the input of the Markov head's W2, `confidence_R` are logits; None without that head.
    """

    hidden_RD: Tensor
    markov_RM: Tensor | None
    confidence_R: Tensor | None


def draft(model: DSparkModel, target: FrozenTarget, state_BTF: Tensor, blocks: Blocks) -> DraftOutput:
    """Run the drafter over all blocks. `state_BTF` are FrozenTarget.states; no block attends to its anchor or later."""
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
    return DraftOutput(
        hidden_RD, markov_RM, None if model.confidence_head is None else model.confidence_head(features_RD)
    )


def draft_logits(model: DSparkModel, target: FrozenTarget, drafted: DraftOutput) -> Tensor:
    """Return all logits `[R, V]`, for tests; training only ever holds a chunk of them (loss.py)."""
    logits_RV = drafted.hidden_RD.float() @ target.head_VD.T
    if model.markov_head is not None:
        logits_RV = logits_RV + model.markov_head.markov_w2(drafted.markov_RM)
    return logits_RV
