"""Drawing tokens. Distributions in, tokens out; the noise is a function of (seed, position, purpose), not a state.

A request's token at a position therefore depends on its own logits and seed alone: not on the batch it happens
to be in, the replica, or how often it was interrupted. Draws use the Gumbel-max identity (Gumbel 1954):
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
# What a draw is for: each purpose has noise of its own.
TARGET_NOISE, DRAFT_NOISE, ACCEPT_NOISE = 0, 1, 2


@dataclass(frozen=True)
class SamplingBatch:
    """The options of R rows on the device. Rows at temperature 0 are greedy; those and rows with a seed of the
    client's own are `coupled`: they give the same tokens whatever was drafted (decode/verify.py)."""

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
        """From each row's options and the position that the drawn token will have."""
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
class Draws:
    """What was drawn for R rows, on the device. K is the most alternatives that a row wants."""

    token_R: Tensor
    logprob_R: Tensor
    top_token_RK: Tensor
    top_logprob_RK: Tensor
    top_logprobs: tuple[int, ...]

    def drawn(self) -> list[SampledToken]:
        """The copy to the host."""
        tokens, logprobs = self.token_R.tolist(), self.logprob_R.tolist()
        if not any(self.top_logprobs):
            return [SampledToken(token, logprob) for token, logprob in zip(tokens, logprobs, strict=True)]
        tops = zip(self.top_token_RK.tolist(), self.top_logprob_RK.tolist(), self.top_logprobs, strict=True)
        rows = zip(tokens, logprobs, tops, strict=True)
        return [SampledToken(token, lp, tuple(zip(ids[:k], lps[:k], strict=True))) for token, lp, (ids, lps, k) in rows]


@torch.inference_mode()
def sample(logits_RV: Tensor, options: SamplingBatch, logits_processors: LogitsProcessors | None = None) -> Draws:
    """One token for each row. Log-probabilities are those of the model's own (unprocessed) distribution.

    A row that holds NaN or infinity gets NO_TOKEN: its request has to end, the others are not touched.
    """
    changed_RV = logits_RV if logits_processors is None else logits_processors.applied(logits_RV)
    scores_RV = changed_RV if options.all_greedy else log_probs(changed_RV, options)
    return told(logits_RV, draw(changed_RV, scores_RV, options), options)


def draw(changed_RV: Tensor, scores_RV: Tensor, options: SamplingBatch) -> Tensor:
    """A token of each row [R]: the best of `changed_RV` where a row is greedy (not even rounding may differ), else one
    drawn in proportion to exp(scores)."""
    if options.all_greedy:
        return changed_RV.argmax(dim=-1)
    noise_RV = gumbel(options.seed_R, options.position_R, TARGET_NOISE, scores_RV.shape[-1])
    greedy_R1 = (options.temperature_R == 0)[:, None]
    return torch.where(greedy_R1, changed_RV, scores_RV + noise_RV).argmax(dim=-1)


def told(logits_RV: Tensor, token_R: Tensor, options: SamplingBatch) -> Draws:
    """What is told of tokens that were drawn from logits which may have been processed meanwhile."""
    own_RV = logits_RV.log_softmax(dim=-1)
    finite_R = logits_RV.sum(dim=-1).isfinite()  # one NaN or infinity is enough to spoil a sum
    top = own_RV.topk(min(max(options.top_logprobs), own_RV.shape[-1]), dim=-1)
    return Draws(
        torch.where(finite_R, token_R, NO_TOKEN),
        own_RV.gather(-1, token_R[:, None])[:, 0],
        top.indices,
        top.values,
        options.top_logprobs,
    )


def log_probs(logits_RV: Tensor, options: SamplingBatch) -> Tensor:
    """log of the distribution that temperature, min-p, top-k and top-p leave, in that order; -inf is impossible.

    Min-p keeps what has at least that share of the most likely token's probability (Nguyen et al. 2024). Ties at
    the k-th place all stay. Top-p keeps the smallest set of most likely tokens with mass >= p (Holtzman et al.
    2020). The most likely one always stays. Greedy rows are returned at temperature 1, unfiltered.
    """
    temperature_R = torch.where(options.temperature_R > 0, options.temperature_R, 1.0)
    above_RV = logits_RV - logits_RV.amax(dim=-1, keepdim=True)  # so that a tiny temperature cannot overflow
    scaled_RV = above_RV / temperature_R[:, None]
    if options.any_filter:
        scaled_RV = _filtered(scaled_RV, options)
    return scaled_RV.log_softmax(dim=-1)


def _filtered(scaled_RV: Tensor, options: SamplingBatch) -> Tensor:
    """`scaled_RV` has its maximum at 0."""
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
    """Standard Gumbel noise [R, V], a pure function of its arguments.

    From 1 - U, because uniforms are finest near 0 and it is the large values of the noise that decide a draw.
    """
    return -(-torch.log1p(-uniform(seed_R, position_R, purpose, vocab))).log()


def uniform(seed_R: Tensor, position_R: Tensor, purpose: int | Tensor, count: int) -> Tensor:
    """`count` uniforms in (0, 1) for each row, float32, a pure function of (seed, position, purpose, index).

    Counter-based: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a keyed counter. 63 bits, so that
    values near 0 keep float32's relative precision.
    """
    key_R = _mix(seed_R ^ _mix(position_R * 2 + 1 + (purpose << 40)))
    index_V = torch.arange(count, dtype=torch.int64, device=seed_R.device)
    bits_RV = _mix(key_R[:, None] + index_V * _GOLDEN)
    return ((bits_RV & (2**63 - 1)).float() * 2.0**-63).clamp(2.0**-63, 1 - 2.0**-24)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (wrapping; `>>` is arithmetic there, hence the masks)."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX_2
    return x ^ ((x >> 31) & (2**33 - 1))
