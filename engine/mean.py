"""The exponential mean that all running estimates use."""

from dataclasses import dataclass


@dataclass
class ExponentialMean:
    """A mean to which each new sample contributes the share `weight`, so that older samples fade.

    `value` counts as the mean before the first sample; if it is None, the first sample is taken whole.
    """

    weight: float
    value: float | None = None

    def observe(self, sample: float) -> None:
        self.value = sample if self.value is None else self.value + self.weight * (sample - self.value)

    def or_else(self, default: float) -> float:
        """The mean, or `default` before the first sample."""
        return default if self.value is None else self.value
