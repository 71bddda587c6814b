"""Derives the settings of routing, admission and scaling from a configuration, for the cluster and the simulator."""

from engine.config import Config
from policy.board import Rules
from policy.route import PoolPolicy
from policy.scale import Bounds, Targets


def routing_rules(config: Config) -> Rules:
    """Return the settings of routing and admission."""
    return Rules(
        pools=tuple(config.decode),
        page_tokens=config.model.page_tokens,
        tiers=config.gateway.tiers,
        pool_policy=PoolPolicy(config.gateway.pool_policy),
        target_rate=config.targets.tokens_per_second,
        max_queued_seconds=config.gateway.max_queued_seconds,
    )


def scaling_targets(config: Config) -> Targets:
    """Return the service levels and budgets that scaling keeps."""
    targets = config.targets
    return Targets(
        ttft_seconds=targets.ttft_seconds,
        tokens_per_second=targets.tokens_per_second,
        devices=targets.devices,
        watts=targets.watts,
        down_seconds=targets.down_seconds,
    )


def scaling_bounds(config: Config) -> dict[str, Bounds]:
    """Return the bounds of each pool that is scaled by service level."""
    return {
        pool: Bounds(
            min_replicas=section.scale.min_replicas,
            max_replicas=section.scale.max_replicas,
            devices=section.scale.devices,
            watts=section.scale.watts,
        )
        for pool, section in config.pools.items()
        if section.scale is not None
    }


def initial_replicas(config: Config) -> dict[str, int]:
    """Return how many replicas of each pool there are before the first decision."""
    return {pool: one.scale.min_replicas if one.scale else one.replicas for pool, one in config.pools.items()}
