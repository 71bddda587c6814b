"""The network link of a handoff: when bytes that are requested now arrive."""

from dataclasses import dataclass, field

from engine.errors import ConfigError


@dataclass
class Link:
    """`bandwidth` in bytes per second, `latency` in seconds. Reads queue: a link that is busy begins the next when the
    last is through."""

    bandwidth: float
    latency: float = 0.0
    _free_at: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        if self.bandwidth <= 0 or self.latency < 0:
            raise ConfigError(f"a link of {self.bandwidth:g} bytes/s and {self.latency:g} s is none")

    def arrives(self, now: float, size: float) -> float:
        """Return when `size` bytes, requested `now`, have arrived."""
        began = max(now, self._free_at)
        self._free_at = began + size / self.bandwidth
        return self._free_at + self.latency
