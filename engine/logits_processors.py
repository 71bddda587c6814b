"""Logits processors: penalties, biases and forbidden tokens, applied to a request's logits before sampling.

They change few tokens, so the changes are a sparse list, built on the host for the requests that need any:

    logit := logit / r  if logit > 0 else logit * r      r: repetition penalty, for tokens of prompt and output
                                                         (Keskar et al. 2019, section 4.1)
    logit := logit - f * count - p * (count > 0)         f, p: frequency and presence penalty, counts over the output
    logit := logit + bias                                logit bias; minus infinity for forbidden tokens

in this order. R = rows, V = vocabulary, E = changed logits
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import to_device
from engine.types import Request

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class TokenHistory:
    """The tokens of a request before the one to be sampled: its prompt and its output so far."""

    request: Request
    tokens: Sequence[int]

    @property
    def generated(self) -> Sequence[int]:
        return self.tokens[len(self.request.prompt) :]

    def forbidden(self, eos_token_ids: Iterable[int]) -> set[int]:
        """Return the tokens that must not come next: those that complete a bad word, and before `min_tokens` every
        end-of-text or stop token."""
        generated = list(self.generated)
        tokens = set()
        for *start, last in self.request.sampling.bad_words:
            if generated[len(generated) - len(start) :] == start:
                tokens.add(last)
        if len(generated) < self.request.stop.min_tokens:
            tokens |= {*eos_token_ids, *self.request.stop.stop_token_ids}
        return tokens

    def changes(self, eos_token_ids: Iterable[int]) -> dict[int, tuple[float, float]]:
        """Return (factor r, offset) for each token whose logit changes."""
        sampling = self.request.sampling
        factors: dict[int, float] = {}
        offsets: dict[int, float] = defaultdict(float)
        if sampling.repetition_penalty != 1.0:
            factors = dict.fromkeys(self.tokens, sampling.repetition_penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in Counter(self.generated).items():
                offsets[token] = -sampling.frequency_penalty * count - sampling.presence_penalty
        for token, bias in sampling.logit_bias:
            offsets[token] += bias
        for token in self.forbidden(eos_token_ids):
            offsets[token] = FORBIDDEN
        return {token: (factors.get(token, 1.0), offsets[token]) for token in {*factors, *offsets}}


@dataclass(frozen=True)
class LogitsProcessors:
    """The logit changes of a whole batch, on the device."""

    row_E: Tensor
    token_E: Tensor
    factor_E: Tensor
    offset_E: Tensor

    @classmethod
    def of(
        cls, histories: Sequence[TokenHistory | None], eos_token_ids: Iterable[int], device: torch.device
    ) -> "LogitsProcessors | None":
        """Return None if no request needs a change, the usual case. Rows without a history are not changed."""
        changed = [
            (row, token, *change)
            for row, history in enumerate(histories)
            if history is not None and history.request.needs_logits_processors
            for token, change in history.changes(eos_token_ids).items()
        ]
        if not changed:
            return None
        rows, tokens, factors, offsets = zip(*changed, strict=True)
        return cls(
            to_device(rows, torch.int64, device),
            to_device(tokens, torch.int64, device),
            to_device(factors, torch.float32, device),
            to_device(offsets, torch.float32, device),
        )

    def applied(self, logits_RV: Tensor) -> Tensor:
        """Return changed logits, without modifying the original."""
        old_E = logits_RV[self.row_E, self.token_E]
        new_E = torch.where(old_E > 0, old_E / self.factor_E, old_E * self.factor_E) + self.offset_E
        return logits_RV.index_put((self.row_E, self.token_E), new_E)
