"""MTP: the multi-token-prediction layer of a DeepSeek-V3 checkpoint as a drafter.

Equations 21 to 23 of the DeepSeek-V3 report (arXiv 2412.19437): from the target's hidden state of token i (after its
final norm) and the embedding of token i+1, one decoder layer predicts token i+2. Its entry depends on token i+1, so it
is stored at position i+1: then a page depends on its own prefix only. Position 0 has no entry.

    absorb     writes the entries of all tokens of a target step. The first one's needs the hidden state of the token
               before it, which the drafter keeps from the step before.
    propose    runs the layer once for each draft, with its own normed hidden state instead of the target's, which
               has not processed the draft yet. `absorb` later overwrites the entries written here.

T = tokens, R = requests, D = hidden size, V = vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from engine.attention import PagedAttention
from engine.batch import Batch, Row
from engine.device import to_device
from engine.drafters import Anchor, DraftBlock, HiddenStates
from engine.drafters.dspark import sample_draft
from engine.pages import Entry, PageStore
from engine.pages.pool import SCRATCH_PAGE
from engine.sampling import SamplingBatch


class MTPLayer(DeepseekV3DecoderLayer):  # type: ignore[misc]
    """A decoder layer after a projection of embedding and hidden state, under the published names."""

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = DeepseekV3RMSNorm(size, eps=eps)
        self.hnorm = DeepseekV3RMSNorm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": DeepseekV3RMSNorm(size, eps=eps)})

    def joined(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """Return the layer's input [..., D] from `embedding` of token i+1 and the normed hidden state of token i."""
        joined: Tensor = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(hidden)], dim=-1))
        return joined

    def forward(self, embedding: Tensor, hidden: Tensor, **attention: object) -> Tensor:
        """Return the normed hidden state [..., D] from which the target's head predicts token i+2."""
        state: Tensor = self.shared_head["norm"](super().forward(self.joined(embedding, hidden), **attention))
        return state


@dataclass(frozen=True)
class LoadedMTP:
    """The layer with paged attention, and the parts of the target that it uses. A block has `block_length` drafts."""

    layer: MTPLayer
    last_layer: int
    final_norm: nn.Module
    rotary: nn.Module
    embedding: nn.Module
    head: nn.Module
    entries: tuple[Entry, ...]
    fingerprint: dict[str, str]
    block_length: int
    temperatures: tuple[float, ...] | None = None

    def bind(self, store: PageStore) -> "MTP":
        return MTP(self, store)


class MTP:
    """The MTP drafter of one engine: it shares the weights and uses the engine's pages."""

    keeps_hidden = True

    def __init__(self, loaded: LoadedMTP, store: PageStore) -> None:
        self._parts = loaded
        self._store = store
        self.tap_layers: tuple[int, ...] = (loaded.last_layer,)
        self.block_length = loaded.block_length

    @torch.inference_mode()
    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: HiddenStates, last_R: Tensor) -> HiddenStates:
        parts = self._parts
        hidden_TD = parts.final_norm(taps[parts.last_layer])
        before_TD = torch.cat([torch.zeros_like(hidden_TD[:1]), hidden_TD[:-1]])
        before_TD[batch.start_R] = _stacked(before, hidden_TD)
        entering_TD = parts.layer.input_layernorm(parts.layer.joined(parts.embedding(batch.token_ids_T), before_TD))
        positions = parts.rotary(entering_TD[None], batch.positions_T[None])
        attention: PagedAttention = parts.layer.self_attn
        attention.write_cache(entering_TD, positions, _without_unknown(batch, before), self._store)
        return list(hidden_TD[last_R])

    @torch.inference_mode()
    def propose(self, anchors: Sequence[Anchor], max_drafts: int) -> DraftBlock:
        parts, store = self._parts, self._store
        token_R = to_device([anchor.token for anchor in anchors], torch.int64, store.device)
        embedding_RD = parts.embedding(token_R)
        state_RD = _stacked([anchor.hidden for anchor in anchors], embedding_RD)
        options = SamplingBatch.of([(a.sampling, a.position + 1) for a in anchors], store.device)
        tokens, log_probs, confidences = [], [], []
        for k in range(min(max_drafts, self.block_length)):
            rows = [Row((0,), a.position + k, a.tables, 1, context_from=max(1, a.context_from)) for a in anchors]
            batch = Batch.of(rows, store.layout, store.device)
            positions = parts.rotary(embedding_RD[None], batch.positions_T[None])
            entering = embedding_RD[None], state_RD[None]
            state_RD = parts.layer(*entering, position_embeddings=positions, batch=batch, store=store)[0]
            logits_RV = parts.head(state_RD).float()
            # of the most likely token: if it depended on the sampled draft, planning would bias the output
            confidences.append(logits_RV.softmax(dim=-1).amax(dim=-1))
            token_R, log_prob_RV = sample_draft(logits_RV, options, k)
            embedding_RD = parts.embedding(token_R)
            tokens.append(token_R)
            log_probs.append(log_prob_RV)
        return DraftBlock.of(anchors, tokens, log_probs, torch.stack(confidences, dim=1))


def _stacked(rows: HiddenStates, like: Tensor) -> Tensor:
    """Stack to [R, D], zero where there is none, with the device and dtype of `like` [..., D]."""
    zero = like.new_zeros(like.shape[-1])
    return torch.stack([zero if row is None else row.to(like) for row in rows])


def _without_unknown(batch: Batch, before: HiddenStates) -> Batch:
    """Return the batch with a row's first slot replaced by a scratch slot where the hidden state before it is unknown:
    that token has no entry (position 0), or its page already holds it (after a prefix hit)."""
    unknown = [r for r, row in enumerate(before) if row is None]
    if not unknown:
        return batch
    slots = {}
    for name, own in batch.slots.items():
        page_T = own.page_T.clone()
        page_T[batch.start_R[unknown]] = SCRATCH_PAGE
        slots[name] = replace(own, page_T=page_T)
    return replace(batch, slots=slots)
