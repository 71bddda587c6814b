"""What a request wants changed about its logits before a token is drawn: penalties, biases, forbidden tokens.

Few tokens are touched, so the changes are a sparse list, built on the host for the requests that ask for any:

    logit := logit / r  if logit > 0 else logit * r      r: repetition penalty, for tokens of prompt and output
                                                         (Keskar et al. 2019, section 4.1)
    logit := logit - f * count - p * (count > 0)         f, p: frequency and presence penalty, counts over the output
    logit := logit + bias                                logit bias; minus infinity for what is forbidden

in this order. R = rows, V = vocabulary, E = touched entries
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
class Draw:
    """A token about to be drawn for `request`, after `tokens`: its prompt and what was generated so far."""

    request: Request
    tokens: Sequence[int]

    @property
    def generated(self) -> Sequence[int]:
        return self.tokens[len(self.request.prompt) :]

    def forbidden(self, eos_token_ids: Iterable[int]) -> set[int]:
        """Tokens that must not come now: the last one of a bad word, and every end before `min_tokens`."""
        generated = list(self.generated)
        tokens = set()
        for *start, last in self.request.sampling.bad_words:
            if generated[len(generated) - len(start) :] == start:
                tokens.add(last)
        if len(generated) < self.request.stop.min_tokens:
            tokens |= {*eos_token_ids, *self.request.stop.stop_token_ids}
        return tokens

    def changes(self, eos_token_ids: Iterable[int]) -> dict[int, tuple[float, float]]:
        """(factor r, offset) for each token that is touched."""
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
    """The changes of a whole batch, on the device."""

    row_E: Tensor
    token_E: Tensor
    factor_E: Tensor
    offset_E: Tensor

    @classmethod
    def of(
        cls, draws: Sequence[Draw | None], eos_token_ids: Iterable[int], device: torch.device
    ) -> "LogitsProcessors | None":
        """None if nobody wants anything changed, which is the usual case. A row without a draw is left as it is."""
        changed = [
            (row, token, *change)
            for row, draw in enumerate(draws)
            if draw is not None and draw.request.edits_logits
            for token, change in draw.changes(eos_token_ids).items()
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
        """The changed logits; the original stays as it is."""
        old_E = logits_RV[self.row_E, self.token_E]
        new_E = torch.where(old_E > 0, old_E / self.factor_E, old_E * self.factor_E) + self.offset_E
        return logits_RV.index_put((self.row_E, self.token_E), new_E)
