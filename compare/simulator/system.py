"""What is simulated: a service, as its configuration describes it, on machines that are only known by their times."""

from collections.abc import Mapping
from dataclasses import dataclass

from compare.simulator.replica import Kit
from engine.config import Config
from engine.errors import ConfigError
from policy.board import PREFILL


@dataclass(frozen=True, kw_only=True)
class System:
    """A service: its configuration, and what the replicas of each pool (prefill and every decode pool) are made of.

    `hop_seconds`: between gateway and replica, each way; `message_seconds`: between two replicas; `start_seconds`:
    until a replica that is wanted is there.
    """

    config: Config
    kits: Mapping[str, Kit]
    hop_seconds: float = 0.0
    message_seconds: float = 0.0
    start_seconds: float = 30.0

    def __post_init__(self) -> None:
        pools = {PREFILL, *self.config.decode}
        if pools != set(self.kits):
            raise ConfigError(
                f"pools {', '.join(sorted(pools))} need kits, and {', '.join(sorted(self.kits))} have one"
            )
