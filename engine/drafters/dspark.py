"""DSpark: a block of drafts in one parallel pass of a backbone, then a small sequential head.

    context    features of every token that the target has processed: hidden_norm(fc(taps)). Each layer computes its
               entries from them and writes these into the drafter part of the request's pages (`absorb`), so entries
               depend on the target's hidden states alone.
    block      the last committed token (the anchor) and block_size - 1 mask tokens, at its position and the following
               ones. Every token sees the whole context and the whole block; token k gives the base logits of draft k.
    head       draft k is sampled from softmax(base_k + B(draft k-1, ...)); see heads.py. Rank 0 has no head (DFlash).

The block writes its entries to the slots of its positions; `absorb` overwrites them once the target has processed the
tokens there. Embedding and output head are the target's.

T = tokens, R = requests, K = drafts of a block, D = hidden size, V = vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from engine.attention import PagedAttention
from engine.batch import Batch, Row
from engine.device import to_device
from engine.drafters import Anchor, DraftBlock, HiddenStates
from engine.drafters.config import DrafterConfig
from engine.drafters.heads import MARKOV_HEADS, ConfidenceHead
from engine.kernels import native_context
from engine.pages import Entry, PageStore
from engine.sampling import DRAFT_NOISE, TARGET_NOISE, SamplingBatch, gumbel


@dataclass(frozen=True)
class Family:
    """The classes of transformers that a backbone is made of."""

    layer: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]


def family_of(model_type: str) -> Family:
    models = transformers.models
    if model_type == "deepseek_v3":
        v3 = models.deepseek_v3.modeling_deepseek_v3
        return Family(v3.DeepseekV3DecoderLayer, v3.DeepseekV3RMSNorm, v3.DeepseekV3RotaryEmbedding)
    qwen3 = models.qwen3.modeling_qwen3
    return Family(qwen3.Qwen3DecoderLayer, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding)


class DSparkModel(nn.Module):
    """The drafter's weights, under their published names."""

    def __init__(self, config: DrafterConfig, backbone: PretrainedConfig) -> None:
        super().__init__()
        family = family_of(config.model_type)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.config = config
        self.fc = nn.Linear(len(config.target_layer_ids) * size, size, bias=False)
        self.hidden_norm = family.norm(size, eps=eps)
        self.layers = nn.ModuleList(family.layer(backbone, i) for i in range(config.num_hidden_layers))
        self.norm = family.norm(size, eps=eps)
        self.rotary_emb = family.rotary(backbone)
        rank = config.markov_rank
        self.markov_head = MARKOV_HEADS[config.markov_head_type](config.vocab_size, size, rank) if rank else None
        features = size + (rank if config.confidence_head_with_markov else 0)
        self.confidence_head = ConfidenceHead(features) if config.enable_confidence_head else None

    def context(self, taps_TF: Tensor) -> Tensor:
        """Return the feature of each token [T, D] from the outputs of `target_layer_ids`, concatenated [T, F]."""
        context_TD: Tensor = self.hidden_norm(self.fc(taps_TF))
        return context_TD

    @property
    def attentions(self) -> list[PagedAttention]:
        layers: Any = self.layers  # kernels may have replaced the attention modules
        return [layer.self_attn for layer in layers]


@dataclass(frozen=True)
class LoadedDSpark:
    """The weights with paged attention, and the target's embedding and head."""

    model: DSparkModel
    embedding: nn.Module
    head: nn.Module
    entries: tuple[Entry, ...]
    fingerprint: dict[str, str]
    temperatures: tuple[float, ...] | None = None

    @property
    def block_length(self) -> int:
        return self.model.config.block_size

    def bind(self, store: PageStore) -> "DSpark":
        return DSpark(self, store)


class DSpark:
    """The DSpark drafter of one engine: it shares the weights and uses the engine's pages."""

    keeps_hidden = False

    def __init__(self, loaded: LoadedDSpark, store: PageStore) -> None:
        self._model = model = loaded.model
        self._embedding = loaded.embedding
        self._head = loaded.head
        self._store = store
        self.tap_layers = tuple(loaded.model.config.target_layer_ids)
        self.block_length = loaded.block_length
        temperatures = loaded.temperatures or (1.0,) * loaded.block_length
        self._temperature_K = torch.tensor(temperatures, device=store.device)
        self._native = native_context(model.fc, model.hidden_norm, model.attentions, store)

    @torch.inference_mode()
    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: HiddenStates, last_R: Tensor) -> HiddenStates:
        taps_TF = torch.cat([taps[i] for i in self.tap_layers], dim=-1)
        positions = self._model.rotary_emb(taps_TF[None], batch.positions_T[None])
        if self._native is not None:
            self._native(taps_TF, positions, batch)
            return before
        context_TD = self._model.context(taps_TF)
        for attention in self._model.attentions:
            attention.write_cache(context_TD, positions, batch, self._store)
        return before

    @torch.inference_mode()
    def propose(self, anchors: Sequence[Anchor], max_drafts: int) -> DraftBlock:
        """Run the whole block through the backbone, as in training, and `max_drafts` positions through the head."""
        hidden_RKD = self._block(anchors)
        return self._sample(hidden_RKD[:, :max_drafts], anchors)

    def _block(self, anchors: Sequence[Anchor]) -> Tensor:
        masks = (self._model.config.mask_token_id,) * (self.block_length - 1)
        rows = [
            Row((a.token, *masks), a.position, a.tables, self.block_length, as_block=True, context_from=a.context_from)
            for a in anchors
        ]
        batch = Batch.of(rows, self._store.layout, self._store.device)
        hidden_1TD = self._embedding(batch.token_ids_T[None])
        positions = self._model.rotary_emb(hidden_1TD, batch.positions_T[None])
        for layer in self._model.layers:
            hidden_1TD = layer(hidden_1TD, position_embeddings=positions, batch=batch, store=self._store)
        hidden_TD = self._model.norm(hidden_1TD)[0][batch.logits_index]
        hidden_RKD: Tensor = hidden_TD.unflatten(0, (len(anchors), self.block_length))
        return hidden_RKD

    def _sample(self, hidden_RKD: Tensor, anchors: Sequence[Anchor]) -> DraftBlock:
        """Sample the tokens one after the other, each given the one before it."""
        model, device = self._model, hidden_RKD.device
        base_RKV = self._head(hidden_RKD).float()
        before_R = to_device([anchor.token for anchor in anchors], torch.int64, device)
        options = SamplingBatch.of([(a.sampling, a.position + 1) for a in anchors], device)
        state = model.markov_head.start(len(anchors)) if model.markov_head is not None else None
        tokens, log_probs, embedded = [], [], []
        for k in range(hidden_RKD.shape[1]):
            logits_RV = base_RKV[:, k]
            if model.markov_head is not None:
                before_RM = model.markov_head.markov_w1(before_R)
                bias_RV, state = model.markov_head(before_RM, hidden_RKD[:, k], state)
                logits_RV = logits_RV + bias_RV.float()
                embedded.append(before_RM)
            before_R, log_prob_RV = sample_draft(logits_RV, options, k)
            tokens.append(before_R)
            log_probs.append(log_prob_RV)
        return DraftBlock.of(anchors, tokens, log_probs, self._confidence(hidden_RKD, embedded))

    def _confidence(self, hidden_RKD: Tensor, embedded: list[Tensor]) -> Tensor | None:
        """Return confidences [R, K] from the block's hidden states and the embedded token before each draft."""
        if self._model.confidence_head is None:
            return None
        features = hidden_RKD
        if self._model.config.confidence_head_with_markov:
            features = torch.cat([hidden_RKD, torch.stack(embedded, dim=1)], dim=-1)
        logit_RK = self._model.confidence_head(features).float()
        confidence_RK: Tensor = (logit_RK / self._temperature_K[: logit_RK.shape[1]]).sigmoid()
        return confidence_RK


def sample_draft(logits_RV: Tensor, options: SamplingBatch, k: int) -> tuple[Tensor, Tensor]:
    """Sample tokens [R] at the requests' temperatures, `k` positions after those of `options`; return them and the
    log-probabilities [R, V] they were sampled from.

    A coupled row uses the same noise as the target will at that position, so that both tend to agree. Filters such as
    top-p are not applied: the target rejects a draft that they exclude.
    """
    if options.all_greedy:
        return logits_RV.argmax(dim=-1), logits_RV
    temperature_R1 = torch.where(options.temperature_R > 0, options.temperature_R, 1.0)[:, None]
    above_RV = logits_RV - logits_RV.amax(dim=-1, keepdim=True)
    log_probs_RV = (above_RV / temperature_R1).log_softmax(dim=-1)
    purpose_R = torch.where(options.coupled_R, TARGET_NOISE, DRAFT_NOISE)
    noise_RV = gumbel(options.seed_R, options.position_R + k, purpose_R, logits_RV.shape[-1])
    greedy_R1 = (options.temperature_R == 0)[:, None]
    return torch.where(greedy_R1, logits_RV, log_probs_RV + noise_RV).argmax(dim=-1), log_probs_RV
