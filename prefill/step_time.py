"""An estimate of how long a prefill step takes, learned from past steps."""

from engine.mean import ExponentialMean

EMA_WEIGHT = 0.2


class MeanStep:
    """The mean tokens and seconds of steps of similar length."""

    def __init__(self) -> None:
        self._tokens, self._seconds = ExponentialMean(EMA_WEIGHT), ExponentialMean(EMA_WEIGHT)

    def observe(self, tokens: int, seconds: float) -> None:
        self._tokens.observe(tokens)
        self._seconds.observe(seconds)

    @property
    def tokens(self) -> float:
        return self._tokens.or_else(0.0)

    @property
    def seconds(self) -> float:
        """The mean seconds; 0 before the first step."""
        return self._seconds.or_else(0.0)


class StepTimeEstimator:
    """Estimates the seconds of a step as linear in its tokens, through the mean short step and the mean long step.

    The two means stay apart even if recent steps all had the same length. A step counts as long from half of
    `chunk_tokens`.
    """

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._short, self._long = MeanStep(), MeanStep()

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a step of `tokens`. A step of no time, on a clock that a test moves, teaches nothing."""
        if seconds:
            (self._long if 2 * tokens >= self._chunk_tokens else self._short).observe(tokens, seconds)

    def seconds(self, tokens: int) -> float:
        """Return the seconds of a step of `tokens`; 0 before the first step."""
        short, long = self._short, self._long
        if not (short.seconds and long.seconds):
            known = long if long.seconds else short
            return known.seconds * max(1.0, tokens / known.tokens) if known.seconds else 0.0
        slope = max(0.0, (long.seconds - short.seconds) / (long.tokens - short.tokens))
        return max(0.0, long.seconds - slope * (long.tokens - tokens))

    @property
    def tokens_per_second(self) -> float:
        """The throughput of full steps; 0 before the first step."""
        seconds = self.seconds(self._chunk_tokens)
        return self._chunk_tokens / seconds if seconds else 0.0
