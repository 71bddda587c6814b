"""The acceptance of drafted tokens, and the token that follows them.

The target has computed, for request r with `lengths[r]` drafts x_1 .. x_L, the logits that follow each of 0 .. L:
L + 1 rows. p_j is the processed distribution of row j, q_j the one that x_{j+1} was drawn from. Two exact rules:

    rejection   (the client sets no seed)  accept x with probability min(1, p(x) / q(x)); the first that is not
                accepted is replaced by a sample of max(0, p - q), normalised; if all are, one more is sampled from p.
                The output is distributed as the target's (Leviathan et al. 2023, Chen et al. 2023).
    coupled     (greedy, or a seed)  the target samples its own token with the noise of that position; drafts are
                accepted while they are the same. The output has the same tokens as that of the target alone.

Both sample the next token with the noise of its position, so that they are identical without drafts.

For benchmarks there is `Synthetic`, which accepts at given rates and is not exact.

N = rows of logits of all requests, R = requests, K = drafts of a block, V = vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from engine.device import to_device
from engine.drafters import DraftBlock
from engine.logits_processors import LogitsProcessors
from engine.sampling import ACCEPT_NOISE, SamplerOutput, SamplingBatch, draw, gather_logprobs, log_probs, uniform
from engine.types import SampledToken

MIN_RESIDUAL = 1e-8  # below this mass, p and q differ by rounding only, and p itself is sampled


@dataclass(frozen=True)
class Accepted:
    """The tokens of a step: each request gets the first `num_drafts_R + 1` of its rows in `draws`."""

    draws: SamplerOutput
    num_drafts_R: Tensor
    lengths: tuple[int, ...]

    @property
    def last_row_R(self) -> Tensor:
        """The row of logits that each request's last token was sampled from."""
        first = [0, *accumulate(length + 1 for length in self.lengths[:-1])]
        return to_device(first, torch.int64, self.num_drafts_R.device) + self.num_drafts_R

    def to_host(self) -> list[list[SampledToken]]:
        """Return the tokens of each request, at least one. This is the step's one copy to the host."""
        rows, tokens, start = self.draws.to_host(), [], 0
        for length, accepted in zip(self.lengths, self.num_drafts_R.tolist(), strict=True):
            tokens.append(rows[start : start + accepted + 1])
            start += length + 1
        return tokens


@dataclass(frozen=True)
class LogitsRows:
    """The request of each row of logits, the number of its drafts before the row, and whether a draft follows."""

    request_N: Tensor
    offset_N: Tensor
    drafted_N: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "LogitsRows":
        rows = [(request, offset, offset < n) for request, n in enumerate(lengths) for offset in range(n + 1)]
        request_N, offset_N, drafted_N = to_device(rows, torch.int64, device).unbind(1)
        return cls(request_N, offset_N, drafted_N.bool())

    def of_block(self, values_RK: Tensor) -> Tensor:
        """Return the value of the draft that follows each row; an arbitrary one where none does."""
        return values_RK[self.request_N, self.offset_N.clamp(max=values_RK.shape[1] - 1)]


class Acceptor(Protocol):
    synthetic: bool
    """Whether drafts are accepted at given rates, so that the output is not the target's own."""

    def __call__(
        self,
        logits_NV: Tensor,
        block: DraftBlock,
        lengths: Sequence[int],
        options: SamplingBatch,
        logits_processors: LogitsProcessors | None,
    ) -> Accepted:
        """Accept drafts. `options` and `logits_processors` are for the tokens that follow each of the N rows."""
        ...


class Exact:
    """Accepts by the two rules above, so that the output is the target's own or is distributed as its own."""

    synthetic = False

    @torch.inference_mode()
    def __call__(
        self,
        logits_NV: Tensor,
        block: DraftBlock,
        lengths: Sequence[int],
        options: SamplingBatch,
        logits_processors: LogitsProcessors | None,
    ) -> Accepted:
        processed_NV = logits_NV if logits_processors is None else logits_processors.applied(logits_NV)
        log_p_NV = processed_NV if options.all_greedy else log_probs(processed_NV, options)
        if not any(lengths):
            own_N = draw(processed_NV, log_p_NV, options)
            return Accepted(gather_logprobs(logits_NV, own_N, options), torch.zeros_like(own_N), tuple(lengths))
        rows = LogitsRows.of(lengths, logits_NV.device)
        draft_N = rows.of_block(block.token_RK)
        if options.all_coupled:
            own_N = draw(processed_NV, log_p_NV, options)
            survives_N = own_N == draft_N
        else:
            log_q_NV = self._log_q(block, rows, draft_N, log_p_NV)
            residual_NV = torch.where(options.coupled_R[:, None], log_p_NV, _log_residual(log_p_NV, log_q_NV))
            own_N = draw(processed_NV, residual_NV, options)
            survives_N = torch.where(
                options.coupled_R, own_N == draft_N, _is_accepted(log_p_NV, log_q_NV, draft_N, options)
            )
        return _committed(logits_NV, draft_N, own_N, survives_N, rows, lengths, options)

    def _log_q(self, block: DraftBlock, rows: LogitsRows, draft_N: Tensor, log_p_NV: Tensor) -> Tensor:
        """Return log q at each row; q is 0 where no draft follows."""
        if block.log_probs_RKV is None:
            certain_NV = torch.full_like(log_p_NV, -torch.inf).scatter_(1, draft_N[:, None], 0.0)
        else:
            certain_NV = rows.of_block(block.log_probs_RKV)
        return certain_NV.masked_fill(~rows.drafted_N[:, None], -torch.inf)


class Synthetic:
    """Accepts the draft at position j of a block with probability `rates[j]` if those before it were, and none beyond
    `rates`; then a token of the target follows. It is for benchmarks on random weights. The noise of each position
    decides: with the same seeds and lengths, the same drafts are accepted."""

    synthetic = True

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = tuple(rates)

    @torch.inference_mode()
    def __call__(
        self,
        logits_NV: Tensor,
        block: DraftBlock,
        lengths: Sequence[int],
        options: SamplingBatch,
        logits_processors: LogitsProcessors | None,
    ) -> Accepted:
        processed_NV = logits_NV if logits_processors is None else logits_processors.applied(logits_NV)
        own_N = draw(processed_NV, processed_NV if options.all_greedy else log_probs(processed_NV, options), options)
        if not any(lengths):
            return Accepted(gather_logprobs(logits_NV, own_N, options), torch.zeros_like(own_N), tuple(lengths))
        rows = LogitsRows.of(lengths, logits_NV.device)
        rates = (*self._rates, *[0.0] * block.length)[: block.length]
        rate_N = rows.of_block(to_device([rates] * len(lengths), torch.float32, logits_NV.device))
        u_N = uniform(options.seed_R, options.position_R, ACCEPT_NOISE, 1)[:, 0]
        return _committed(logits_NV, rows.of_block(block.token_RK), own_N, u_N < rate_N, rows, lengths, options)


def _committed(
    logits_NV: Tensor,
    draft_N: Tensor,
    own_N: Tensor,
    survives_N: Tensor,
    rows: LogitsRows,
    lengths: Sequence[int],
    options: SamplingBatch,
) -> Accepted:
    """Commit the drafts of each request before the first that does not survive, and then the target's own token."""
    accepted_R = _leading(survives_N & rows.drafted_N, rows, lengths)
    token_N = torch.where(rows.offset_N < accepted_R[rows.request_N], draft_N, own_N)
    return Accepted(gather_logprobs(logits_NV, token_N, options), accepted_R, tuple(lengths))


def _log_residual(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Return log max(0, p - q), not normalised; log p where no mass is left."""
    residual_NV = (log_p_NV.exp() - log_q_NV.exp()).clamp(min=0)
    empty_N1 = residual_NV.sum(dim=-1, keepdim=True) <= MIN_RESIDUAL
    return torch.where(empty_N1, log_p_NV, residual_NV.log())


def _is_accepted(log_p_NV: Tensor, log_q_NV: Tensor, draft_N: Tensor, options: SamplingBatch) -> Tensor:
    """Return u < p(x) / q(x), with the uniform number of that position. [N]"""
    log_ratio_N = (log_p_NV.gather(-1, draft_N[:, None]) - log_q_NV.gather(-1, draft_N[:, None]))[:, 0]
    u_N = uniform(options.seed_R, options.position_R, ACCEPT_NOISE, 1)[:, 0]
    return u_N.log() < log_ratio_N


def _leading(survives_N: Tensor, rows: LogitsRows, lengths: Sequence[int]) -> Tensor:
    """Count each request's drafts before the first that does not survive. [R]"""
    grid_RK = torch.zeros(len(lengths), max(lengths) + 1, dtype=torch.int64, device=survives_N.device)
    grid_RK[rows.request_N, rows.offset_N] = survives_N.long()
    return grid_RK.cumprod(dim=1).sum(dim=1)
