"""What the board goes by, from a configuration: for the cluster and for the simulator."""

from engine.config import Config
from policy.board import Rules
from policy.route import PoolPolicy


def rules(config: Config) -> Rules:
    """Those of a configuration."""
    return Rules(
        pools=tuple(config.decode),
        page_tokens=config.model.page_tokens,
        tiers=config.gateway.tiers,
        pool_policy=PoolPolicy(config.gateway.pool_policy),
        target_rate=config.targets.tokens_per_second,
        max_queued_seconds=config.gateway.queued_seconds,
    )
