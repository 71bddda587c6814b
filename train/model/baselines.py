"""Baselines that only count tokens: unigram and bigram models."""

import numpy as np

DISCOUNT = 0.75


class Unigram:
    """Token frequencies with one added to each count."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        counts = np.bincount(tokens, minlength=vocab_size) + 1.0
        self.probabilities = counts / counts.sum()

    def loss(self, tokens: np.ndarray) -> float:
        """Return the nats per token on `tokens[1:]`, the tokens that a model predicts."""
        return float(-np.log(self.probabilities[tokens[1:]]).mean())

    def top1(self, tokens: np.ndarray) -> float:
        """Return the share of `tokens` that are the most frequent token."""
        return float((tokens == self.probabilities.argmax()).mean())


class Bigram:
    """Interpolated Kneser-Ney: absolute discounting, backing off to continuation counts.

    p(w|v) = max(c(vw) - d, 0) / c(v) + d n(v) / c(v) * q(w), where n(v) counts the distinct followers of v and q(w)
    the distinct predecessors of w (Chen and Goodman 1998, section 2.7).
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        pairs = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
        self.counts = np.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
        self.totals = self.counts.sum(1)
        self.followers = (self.counts > 0).sum(1)
        predecessors = (self.counts > 0).sum(0) + 1.0
        self.continuation = predecessors / predecessors.sum()

    def loss(self, tokens: np.ndarray) -> float:
        """Return the nats per token on `tokens[1:]`, each given the token before it."""
        before, after = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
        totals = np.maximum(self.totals[before], 1)
        seen = np.maximum(self.counts[before, after] - DISCOUNT, 0) / totals
        rest = np.where(self.totals[before] > 0, DISCOUNT * self.followers[before] / totals, 1.0)
        return float(-np.log(seen + rest * self.continuation[after]).mean())
