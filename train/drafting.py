"""The training forward of a DSpark drafter: many blocks of every sequence at once, under one dense mask.

The modules are those that the engine drafts with (engine/drafters/dspark.py), with transformers' own attention
instead of pages. Every block begins at an anchor: its rows see the context strictly before it, and each other.

    context    keys and values (or latents) made from `DSparkModel.context` as it is, without the layer's input norm
    block      the anchor's token and block_size - 1 mask tokens, at its position and the next ones
    row k      drafts the token k + 1 places behind the anchor, told (teacher forcing) the sequence's token before

B = sequences, T = tokens of a sequence, N = anchors of a sequence, K = rows of a block, D = hidden size,
V = vocabulary, M = rank of the Markov head, P = rope size, H = heads
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from engine.drafters.heads import RecurrentMarkovHead
from train.attention import ATTENTION

BLOCK_ATTENTION = "fused_block"


def fused_block(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BGTD: Tensor,
    value_BGTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of block rows under `attention_mask`, returned as `[B, S, H, value size]`.

    Values are padded to the keys' size, and key heads repeated, for PyTorch's fused CPU kernel.
    """
    size, repeats = value_BGTE.shape[-1], query_BHSD.shape[1] // key_BGTD.shape[1]
    if repeats > 1:
        key_BGTD, value_BGTE = (x.repeat_interleave(repeats, dim=1) for x in (key_BGTD, value_BGTE))
    padded = functional.pad(value_BGTE, (0, query_BHSD.shape[-1] - size))
    output = functional.scaled_dot_product_attention(query_BHSD, key_BGTD, padded, attention_mask, scale=scaling)
    return output[..., :size].transpose(1, 2), None


AttentionInterface.register(BLOCK_ATTENTION, fused_block)


class FrozenTarget:
    """The target in float32, as transformers runs it, and what it shows of itself."""

    def __init__(self, model: PreTrainedModel, tap_layers: tuple[int, ...]) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self._taps: dict[int, Tensor] = {}
        for layer in tap_layers:
            self.model.model.layers[layer].register_forward_hook(self._keep(layer))

    @classmethod
    def load(cls, path: Any, tap_layers: tuple[int, ...]) -> FrozenTarget:
        config = AutoConfig.from_pretrained(path)
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        if config.model_type == "deepseek_v3":
            options = {"attn_implementation": ATTENTION, "experts_implementation": "grouped_mm"}
        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options), tap_layers)

    def _keep(self, layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._taps[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """(hidden states after each tapped layer, states after the final norm), all `[B, T, D]`."""
        final_BTD = self.model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        return dict(self._taps), final_BTD

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def logits(self, states: Tensor) -> Tensor:
        """`[..., D] -> [..., V]`: the head that target and drafter share."""
        logits: Tensor = self.model.get_output_embeddings()(states)
        return logits


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
class Drafted:
    """What the drafter says in its blocks. `confidence_BNK` are logits; None without that head."""

    hidden_BNKD: Tensor
    logits_BNKV: Tensor
    confidence_BNK: Tensor | None


def block_places(anchor_BN: Tensor, block_size: int) -> Tensor:
    """The positions of the blocks' rows. [B, N, K]"""
    return anchor_BN[..., None] + torch.arange(block_size, device=anchor_BN.device)


def block_mask(anchor_BN: Tensor, block_size: int, num_context: int) -> Tensor:
    """Which keys (the context's, then all blocks' rows) each block row sees. bool[B, 1, N * K, T + N * K]"""
    anchor_BS = anchor_BN.repeat_interleave(block_size, dim=1)
    context_BST = torch.arange(num_context, device=anchor_BN.device) < anchor_BS[..., None]
    block_S = torch.arange(anchor_BN.shape[1], device=anchor_BN.device).repeat_interleave(block_size)
    own_SS = block_S[:, None] == block_S
    return torch.cat([context_BST, own_SS.expand(len(anchor_BN), -1, -1)], dim=-1)[:, None]


def block_hidden(
    model: DSparkModel, target: FrozenTarget, context_BTD: Tensor, tokens_BT: Tensor, anchor_BN: Tensor
) -> Tensor:
    """The backbone's states after the final norm. [B, N, K, D]"""
    (num_rows, num_context), block_size = tokens_BT.shape, model.config.block_size
    place_BNK = block_places(anchor_BN, block_size)
    ids_BNK = torch.full_like(place_BNK, model.config.mask_token_id)
    ids_BNK[..., 0] = tokens_BT.gather(1, anchor_BN)
    hidden_BSD = target.embed(ids_BNK.flatten(1))
    positions = torch.arange(num_context, device=tokens_BT.device)[None]
    context_rope = model.rotary_emb(context_BTD, positions.expand(num_rows, -1))
    block_rope = model.rotary_emb(hidden_BSD, place_BNK.flatten(1))
    mask = block_mask(anchor_BN, block_size, num_context)
    for layer in model.layers:
        entries = ContextEntries.of(layer.self_attn, context_BTD, context_rope)
        hidden_BSD = layer(hidden_BSD, attention_mask=mask, position_embeddings=block_rope, cache=entries)
    hidden_BNKD: Tensor = model.norm(hidden_BSD).unflatten(1, (-1, block_size))
    return hidden_BNKD


def sequential(model: DSparkModel, base_RKV: Tensor, hidden_RKD: Tensor, before_RK: Tensor) -> tuple[Tensor, Any]:
    """Logits [R, K, V] of drafts that follow `before_RK`, and the logits of their confidence [R, K] (or None)."""
    head, features_RKD = model.markov_head, hidden_RKD
    if head is not None:
        before_RKM = head.markov_w1(before_RK)
        if isinstance(head, RecurrentMarkovHead):
            state, biases = head.start(len(before_RK)), []
            for k in range(before_RK.shape[1]):
                bias_RV, state = head(before_RKM[:, k], hidden_RKD[:, k], state)
                biases.append(bias_RV)
            base_RKV = base_RKV + torch.stack(biases, dim=1)
        else:
            base_RKV = base_RKV + head(before_RKM, hidden_RKD, before_RKM)[0]
        if model.config.confidence_head_with_markov:
            features_RKD = torch.cat([hidden_RKD, before_RKM], dim=-1)
    return base_RKV, None if model.confidence_head is None else model.confidence_head(features_RKD)


def draft(
    model: DSparkModel, target: FrozenTarget, taps: dict[int, Tensor], tokens_BT: Tensor, anchor_BN: Tensor
) -> Drafted:
    """The blocks at `anchor_BN`, told the sequence's own tokens; every block must end before the sequence does."""
    hidden_BNKD = block_hidden(model, target, model.context(taps), tokens_BT, anchor_BN)
    before_BNK = tokens_at(tokens_BT, block_places(anchor_BN, model.config.block_size))
    base_RKV = target.logits(hidden_BNKD.flatten(0, 1))
    logits_RKV, confidence_RK = sequential(model, base_RKV, hidden_BNKD.flatten(0, 1), before_BNK.flatten(0, 1))
    shape = before_BNK.shape[:2]
    confidence_BNK = None if confidence_RK is None else confidence_RK.unflatten(0, shape)
    return Drafted(hidden_BNKD, logits_RKV.unflatten(0, shape), confidence_BNK)


def tokens_at(tokens_BT: Tensor, place_BNK: Tensor) -> Tensor:
    return tokens_BT.gather(1, place_BNK.flatten(1)).view_as(place_BNK)
