"""DSpark: a block of drafts in one parallel pass, then one cheap sequential head over it.

    context    features of every token that the target has seen: hidden_norm(fc(taps)). Each layer turns them into
               entries of its own, written into the drafter part of the request's pages (`absorb`): they depend on the
               target's hidden states alone.
    block      the last committed token (the anchor) and block_size - 1 mask tokens, at its position and the next
               ones. Every row sees the whole context and the whole block; row k gives the base logits of draft k.
    head       draft k is drawn from softmax(base_k + B(draft k-1, ...)); see heads.py. Rank 0 has no head (DFlash).

The block's own entries go to the places of its positions, where the target's features overwrite them when it has seen
those tokens. Embedding and output head are the target's.

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
from engine.drafters import Anchor, DraftBlock, Rows
from engine.drafters.config import DrafterConfig
from engine.drafters.heads import MARKOV_HEADS, ConfidenceHead
from engine.kernels import native_context
from engine.pages import Entry, PageStore
from engine.sampling import DRAFT_NOISE, TARGET_NOISE, SamplingBatch, gumbel


@dataclass(frozen=True)
class Family:
    """The modules of transformers that a backbone is made of."""

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
    """The drafter's own weights, under their published names."""

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
        """The feature of each token [T, D] from the target's hidden states after `target_layer_ids`, side by side."""
        context_TD: Tensor = self.hidden_norm(self.fc(taps_TF))
        return context_TD

    @property
    def attentions(self) -> list[PagedAttention]:
        layers: Any = self.layers
        return [layer.self_attn for layer in layers]


@dataclass(frozen=True)
class LoadedDSpark:
    """The weights with paged attention, beside the target's embedding and head."""

    model: DSparkModel
    embedding: nn.Module
    head: nn.Module
    entries: tuple[Entry, ...]
    fingerprint: dict[str, str]
    temperatures: tuple[float, ...] | None = None

    @property
    def block_length(self) -> int:
        return self.model.config.block_size

    def over(self, store: PageStore) -> "DSpark":
        return DSpark(self, store)


class DSpark:
    """The drafter of one engine: weights shared, pages its engine's own."""

    keeps_rows = False

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
    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: Rows, last_R: Tensor) -> Rows:
        """Write the entries of a target step's tokens."""
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
    def propose(self, anchors: Sequence[Anchor], most: int) -> DraftBlock:
        """The whole block goes through the backbone, as in training; `most` of it through the head."""
        hidden_RKD = self._block(anchors)
        return self._sequence(hidden_RKD[:, :most], anchors)

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

    def _sequence(self, hidden_RKD: Tensor, anchors: Sequence[Anchor]) -> DraftBlock:
        """One token after the other: each knows the one before it."""
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
            before_R, log_prob_RV = drafted(logits_RV, options, k)
            tokens.append(before_R)
            log_probs.append(log_prob_RV)
        return DraftBlock.of(anchors, tokens, log_probs, self._confidence(hidden_RKD, embedded))

    def _confidence(self, hidden_RKD: Tensor, embedded: list[Tensor]) -> Tensor | None:
        """[R, K], from the block's states and the embedded token before each draft."""
        if self._model.confidence_head is None:
            return None
        features = hidden_RKD
        if self._model.config.confidence_head_with_markov:
            features = torch.cat([hidden_RKD, torch.stack(embedded, dim=1)], dim=-1)
        logit_RK = self._model.confidence_head(features).float()
        confidence_RK: Tensor = (logit_RK / self._temperature_K[: logit_RK.shape[1]]).sigmoid()
        return confidence_RK


def drafted(logits_RV: Tensor, options: SamplingBatch, k: int) -> tuple[Tensor, Tensor]:
    """Tokens [R] drawn at the requests' temperatures, `k` places behind the positions of `options`, and the
    log-probabilities [R, V] they were drawn from.

    A coupled row uses the very noise with which the target will draw at that position, so that both tend to agree; its
    filters are the target's business, and a draft that they forbid is rejected there.
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
