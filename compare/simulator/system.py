"""The simulated system: a service with its configuration, on machines of which only step times are known."""

from collections.abc import Mapping
from dataclasses import dataclass

from compare.simulator.replica import SimulatedPool
from engine.config import Config
from engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class System:
    """A service: its configuration, and what the replicas of each pool (prefill and every decode pool) are made of.

    `hop_seconds`: between gateway and replica, each way; `message_seconds`: between two replicas; `start_seconds`: from
    the decision to start a replica until it is ready.
    """

    config: Config
    pools: Mapping[str, SimulatedPool]
    hop_seconds: float = 0.0
    message_seconds: float = 0.0
    start_seconds: float = 30.0

    def __post_init__(self) -> None:
        configured, simulated = ", ".join(sorted(self.config.pools)), ", ".join(sorted(self.pools))
        if configured != simulated:
            raise ConfigError(f"the configuration has the pools {configured}, and the simulated ones are {simulated}")
