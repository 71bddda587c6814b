"""MTP: the next-token-prediction layer that a DeepSeek-V3 checkpoint brings along, as a drafter.

Equations 21 to 23 of the DeepSeek-V3 report (arXiv 2412.19437): from the target's state of token i (after its final
norm) and the embedding of token i+1, one decoder layer predicts token i+2. Its entry needs token i+1, so it lies at
the place of that one: what is in a page then depends on the page's own prefix only. Place 0 has no entry.

    absorb     entries of all tokens of a target step; that of the first needs the state of the token before it, which
               is the request's row
    propose    the layer once for each draft: its normed state stands in for the target's, which has not seen the
               draft yet. What it wrote there the target's own states overwrite.

T = tokens, R = requests, D = hidden size, V = vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from engine.attention import PagedAttention
from engine.batch import Batch, Row
from engine.device import to_device
from engine.drafters import Anchor, DraftBlock, Rows
from engine.drafters.dspark import drafted
from engine.pages import Entry, PageStore
from engine.pages.pool import SCRATCH_PAGE
from engine.sampling import SamplingBatch


class MTPLayer(DeepseekV3DecoderLayer):  # type: ignore[misc]
    """A decoder layer behind a projection of embedding and state, under the published names.

    Embedding and head are the target's own and are passed in.
    """

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__(config, layer)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = DeepseekV3RMSNorm(size, eps=eps)
        self.hnorm = DeepseekV3RMSNorm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": DeepseekV3RMSNorm(size, eps=eps)})

    def joined(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """What goes into the layer [..., D]: `embedding` of token i+1 beside the normed state `hidden` of token i."""
        joined: Tensor = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(hidden)], dim=-1))
        return joined

    def forward(self, embedding: Tensor, hidden: Tensor, **attention: Any) -> Tensor:
        """The state [..., D] from which the target's head predicts token i+2; it is normed."""
        state: Tensor = self.shared_head["norm"](super().forward(self.joined(embedding, hidden), **attention))
        return state


@dataclass(frozen=True)
class LoadedMTP:
    """The layer with paged attention, beside the parts of the target that it uses. `block_length` drafts in a row."""

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

    def over(self, store: PageStore) -> "MTP":
        return MTP(self, store)


class MTP:
    """The drafter of one engine: weights shared, pages its engine's own."""

    keeps_rows = True

    def __init__(self, loaded: LoadedMTP, store: PageStore) -> None:
        self._parts = loaded
        self._store = store
        self.tap_layers: tuple[int, ...] = (loaded.last_layer,)
        self.block_length = loaded.block_length

    @torch.inference_mode()
    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: Rows, last_R: Tensor) -> Rows:
        """Write the entries of a target step's tokens; rows are the normed states of the last ones."""
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
    def propose(self, anchors: Sequence[Anchor], most: int) -> DraftBlock:
        """One token after the other."""
        parts, store = self._parts, self._store
        token_R = to_device([anchor.token for anchor in anchors], torch.int64, store.device)
        embedding_RD = parts.embedding(token_R)
        state_RD = _stacked([anchor.row for anchor in anchors], embedding_RD)
        options = SamplingBatch.of([(a.sampling, a.position + 1) for a in anchors], store.device)
        tokens, log_probs, confidences = [], [], []
        for k in range(min(most, self.block_length)):
            rows = [Row((0,), a.position + k, a.tables, 1, context_from=max(1, a.context_from)) for a in anchors]
            batch = Batch.of(rows, store.layout, store.device)
            positions = parts.rotary(embedding_RD[None], batch.positions_T[None])
            entering = embedding_RD[None], state_RD[None]
            state_RD = parts.layer(*entering, position_embeddings=positions, batch=batch, store=store)[0]
            logits_RV = parts.head(state_RD).float()
            # of the best token, whatever is drawn: it may not depend on the draft itself, or planning would bias
            confidences.append(logits_RV.softmax(dim=-1).amax(dim=-1))
            token_R, log_prob_RV = drafted(logits_RV, options, k)
            embedding_RD = parts.embedding(token_R)
            tokens.append(token_R)
            log_probs.append(log_prob_RV)
        return DraftBlock.of(anchors, tokens, log_probs, torch.stack(confidences, dim=1))


def _stacked(rows: Rows, like: Tensor) -> Tensor:
    """[R, D], zero where there is no row; on the device and of the kind of `like` [..., D]."""
    zero = like.new_zeros(like.shape[-1])
    return torch.stack([zero if row is None else row.to(like) for row in rows])


def _without_unknown(batch: Batch, before: Rows) -> Batch:
    """The same batch, except that nobody's first token is written if the state before it is not known: there is no
    entry (place 0), or the right one is there already (after a prefix hit)."""
    unknown = [r for r, row in enumerate(before) if row is None]
    if not unknown:
        return batch
    slots = {}
    for name, own in batch.slots.items():
        page_T = own.page_T.clone()
        page_T[batch.start_R[unknown]] = SCRATCH_PAGE
        slots[name] = replace(own, page_T=page_T)
    return replace(batch, slots=slots)
