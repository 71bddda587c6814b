"""How long a prefill step takes, learned from those that were taken."""

from dataclasses import dataclass


@dataclass
class Mean:
    """Of steps of about one length; older ones fade."""

    tokens: float = 0.0
    seconds: float = 0.0

    EMA_WEIGHT = 0.2

    def observe(self, tokens: int, seconds: float) -> None:
        share = self.EMA_WEIGHT if self.seconds else 1.0
        self.tokens += share * (tokens - self.tokens)
        self.seconds += share * (seconds - self.seconds)


class Pace:
    """A straight line through the mean short step and the mean long one: two points that never become one, however
    alike the steps of late have been. A step is long from half of `chunk_tokens`."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._short, self._long = Mean(), Mean()

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        (self._long if 2 * tokens >= self._chunk_tokens else self._short).observe(tokens, seconds)

    def seconds(self, tokens: int) -> float:
        """Of a step of so many tokens; 0 while no step has been seen."""
        short, long = self._short, self._long
        if not (short.seconds and long.seconds):
            one = long if long.seconds else short
            return one.seconds * max(1.0, tokens / one.tokens) if one.seconds else 0.0
        slope = max(0.0, (long.seconds - short.seconds) / (long.tokens - short.tokens))
        return max(0.0, long.seconds - slope * (long.tokens - tokens))

    @property
    def tokens_per_second(self) -> float:
        """In full steps; 0 while no step has been seen."""
        seconds = self.seconds(self._chunk_tokens)
        return self._chunk_tokens / seconds if seconds else 0.0
