"""Sampling: logits in, tokens out. The noise is a pure function of (seed, position, purpose); there is no state.

A request's token at a position therefore depends on its logits and seed alone: not on the rest of the batch, the
replica, or how often it was interrupted. Sampling uses the Gumbel-max identity (Gumbel 1954):
argmax(log p + G) with G_v = -log(-log U_v), U_v uniform and independent, is distributed as p.

R = rows, V = vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import to_device
from engine.logits_processors import LogitsProcessors
from engine.types import SampledToken, Sampling

NO_TOKEN = -1
# What noise is for: each purpose has independent noise.
TARGET_NOISE, DRAFT_NOISE, ACCEPT_NOISE = 0, 1, 2


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling parameters of R rows, on the device.

    Greedy rows and rows with the client's own seed are `coupled`: their tokens do not depend on what was drafted
    (decode/verify.py).
    """

    temperature_R: Tensor
    top_k_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor
    seed_R: Tensor
    position_R: Tensor
    coupled_R: Tensor
    all_coupled: bool
    all_greedy: bool
    any_filter: bool
    top_logprobs: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sampling, int]], device: torch.device) -> "SamplingBatch":
        """Build from each row's parameters and the position that the sampled token will have."""
        options = [sampling for sampling, _ in rows]
        coupled = [s.greedy or s.seeded for s in options]
        reals = [s.temperature for s in options], [s.top_p for s in options], [s.min_p for s in options]
        wholes = [s.top_k for s in options], [s.seed for s in options], [position for _, position in rows], coupled
        temperature_R, top_p_R, min_p_R = to_device(reals, torch.float32, device)
        top_k_R, seed_R, position_R, coupled_R = to_device(wholes, torch.int64, device)
        return cls(
            temperature_R=temperature_R,
            top_k_R=top_k_R,
            top_p_R=top_p_R,
            min_p_R=min_p_R,
            seed_R=seed_R,
            position_R=position_R,
            coupled_R=coupled_R.bool(),
            all_coupled=all(coupled),
            all_greedy=all(s.greedy for s in options),
            any_filter=any(s.top_k > 0 or s.top_p < 1.0 or s.min_p > 0.0 for s in options),
            top_logprobs=tuple(s.top_logprobs for s in options),
        )


@dataclass(frozen=True)
class SamplerOutput:
    """The sampled tokens of R rows, on the device. K is the largest `top_logprobs` of the batch."""

    token_R: Tensor
    logprob_R: Tensor
    top_token_RK: Tensor
    top_logprob_RK: Tensor
    top_logprobs: tuple[int, ...]

    def to_host(self) -> list[SampledToken]:
        """Copy to the host, which waits for the device."""
        tokens, logprobs = self.token_R.tolist(), self.logprob_R.tolist()
        if not any(self.top_logprobs):
            return [SampledToken(token, logprob) for token, logprob in zip(tokens, logprobs, strict=True)]
        tops = zip(self.top_token_RK.tolist(), self.top_logprob_RK.tolist(), self.top_logprobs, strict=True)
        rows = zip(tokens, logprobs, tops, strict=True)
        return [SampledToken(token, lp, tuple(zip(ids[:k], lps[:k], strict=True))) for token, lp, (ids, lps, k) in rows]


@torch.inference_mode()
def sample(
    logits_RV: Tensor, options: SamplingBatch, logits_processors: LogitsProcessors | None = None
) -> SamplerOutput:
    """Sample a token for each row. Log-probabilities are those of the unprocessed logits.

    A row with NaN or infinity gets NO_TOKEN: its request must end; the other rows are not affected.
    """
    changed_RV = logits_RV if logits_processors is None else logits_processors.applied(logits_RV)
    scores_RV = changed_RV if options.all_greedy else log_probs(changed_RV, options)
    return gather_logprobs(logits_RV, draw(changed_RV, scores_RV, options), options)


def draw(changed_RV: Tensor, scores_RV: Tensor, options: SamplingBatch) -> Tensor:
    """Return a token for each row [R]: the argmax of `changed_RV` for greedy rows (from the same numbers, so that not
    even rounding differs), else one drawn with probability proportional to exp(scores)."""
    if options.all_greedy:
        return changed_RV.argmax(dim=-1)
    noise_RV = gumbel(options.seed_R, options.position_R, TARGET_NOISE, scores_RV.shape[-1])
    greedy_R1 = (options.temperature_R == 0)[:, None]
    return torch.where(greedy_R1, changed_RV, scores_RV + noise_RV).argmax(dim=-1)


def gather_logprobs(logits_RV: Tensor, token_R: Tensor, options: SamplingBatch) -> SamplerOutput:
    """Collect the log-probabilities of sampled tokens under the unprocessed `logits_RV`."""
    own_RV = logits_RV.log_softmax(dim=-1)
    finite_R = logits_RV.sum(dim=-1).isfinite()  # one NaN or infinity is enough to spoil a sum
    top = own_RV.topk(min(max(options.top_logprobs), own_RV.shape[-1]), dim=-1)
    return SamplerOutput(
        torch.where(finite_R, token_R, NO_TOKEN),
        own_RV.gather(-1, token_R[:, None])[:, 0],
        top.indices,
        top.values,
        options.top_logprobs,
    )


def log_probs(logits_RV: Tensor, options: SamplingBatch) -> Tensor:
    """Return log-probabilities after temperature, min-p, top-k and top-p, in that order; -inf for excluded tokens.

    Min-p keeps tokens with at least that share of the most likely one's probability (Nguyen et al. 2024). All ties at
    rank k stay. Top-p keeps the smallest set of most likely tokens with mass >= p (Holtzman et al. 2020). The most
    likely token always stays. Greedy rows are returned at temperature 1, unfiltered.
    """
    temperature_R = torch.where(options.temperature_R > 0, options.temperature_R, 1.0)
    above_RV = logits_RV - logits_RV.amax(dim=-1, keepdim=True)  # so that a tiny temperature cannot overflow
    scaled_RV = above_RV / temperature_R[:, None]
    if options.any_filter:
        scaled_RV = _filtered(scaled_RV, options)
    return scaled_RV.log_softmax(dim=-1)


def _filtered(scaled_RV: Tensor, options: SamplingBatch) -> Tensor:
    """Apply min-p, top-k and top-p. The maximum of each row of `scaled_RV` must be 0."""
    scaled_RV = scaled_RV.masked_fill(scaled_RV < options.min_p_R.log()[:, None], float("-inf"))
    sorted_RV = scaled_RV.sort(dim=-1, descending=True).values
    vocab = scaled_RV.shape[-1]
    k_R = torch.where(options.top_k_R > 0, options.top_k_R.clamp(max=vocab), vocab)
    kth_R1 = sorted_RV.gather(-1, (k_R - 1)[:, None])
    sorted_RV = sorted_RV.masked_fill(sorted_RV < kth_R1, float("-inf"))
    probs_RV = sorted_RV.softmax(dim=-1)
    mass_before_RV = probs_RV.cumsum(dim=-1) - probs_RV
    unlimited_R1 = (options.top_p_R >= 1.0)[:, None]
    kept_RV = (mass_before_RV < options.top_p_R[:, None]) | unlimited_R1
    least_RV = sorted_RV.masked_fill(~kept_RV, float("inf"))
    threshold_R1 = torch.maximum(least_RV.amin(dim=-1, keepdim=True), kth_R1)
    return scaled_RV.masked_fill(scaled_RV < threshold_R1, float("-inf"))


def gumbel(seed_R: Tensor, position_R: Tensor, purpose: int | Tensor, vocab: int) -> Tensor:
    """Return standard Gumbel noise [R, V], a pure function of its arguments.

    It is computed from 1 - U, because floats are finest near 0 and the large values of the noise decide a draw.
    """
    return -(-torch.log1p(-uniform(seed_R, position_R, purpose, vocab))).log()


def uniform(seed_R: Tensor, position_R: Tensor, purpose: int | Tensor, count: int) -> Tensor:
    """Return `count` float32 uniforms in (0, 1) for each row, a pure function of (seed, position, purpose, index).

    The generator is counter-based: SplitMix64's finaliser (Steele, Lea, Flood 2014) over a keyed counter. It uses 63
    bits, so that values near 0 keep float32's relative precision.
    """
    key_R = _mix(seed_R ^ _mix(position_R * 2 + 1 + (purpose << 40)))
    index_V = torch.arange(count, dtype=torch.int64, device=seed_R.device)
    bits_RV = _mix(key_R[:, None] + index_V * _GOLDEN)
    return ((bits_RV & (2**63 - 1)).float() * 2.0**-63).clamp(2.0**-63, 1 - 2.0**-24)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 (wrapping; `>>` is arithmetic, hence the masks)."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX_2
    return x ^ ((x >> 31) & (2**33 - 1))
