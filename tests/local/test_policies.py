"""Tests that every key of the configuration about policies reaches them."""

from dataclasses import asdict, fields

from engine.config import Config, GatewayConfig, ScaleConfig, TargetsConfig
from local.policies import initial_replicas, routing_rules, scaling_bounds, scaling_targets
from policy.board import Rules
from policy.route import PoolPolicy
from policy.scale import Bounds, Targets

SCALE = {"min_replicas": 2, "max_replicas": 5, "devices": 8.0, "watts": 900.0}
TARGETS = {"ttft_seconds": 0.7, "tokens_per_second": 33.0, "devices": 64.0, "watts": 9000.0, "down_seconds": 12.0}


def test_every_target_of_the_configuration_reaches_scaling() -> None:
    targets = scaling_targets(Config.parse({"targets": TARGETS}))

    assert asdict(targets) == TARGETS
    unused = {"ttft_percentile", "record"}  # who measures and who writes use these
    assert {field.name for field in fields(Targets)} == TargetsConfig.model_fields.keys() - unused


def test_only_scaled_pools_have_bounds() -> None:
    config = Config.parse({"prefill": {"scale": SCALE}, "decode": {"a": {"scale": SCALE}, "b": {"replicas": 3}}})

    assert scaling_bounds(config) == dict.fromkeys(
        ("prefill", "a"), Bounds(min_replicas=2, max_replicas=5, devices=8.0, watts=900.0)
    )
    assert initial_replicas(config) == {"prefill": 2, "a": 2, "b": 3}
    assert len(fields(Bounds)) == len(ScaleConfig.model_fields)


def test_routing_rules_follow_the_configuration() -> None:
    gateway = {"tiers": {"fast": "b"}, "pool_policy": "spill", "max_queued_seconds": 7.0}
    config = Config.parse(
        {"model": {"page_tokens": 32}, "decode": {"a": {}, "b": {}}, "gateway": gateway, "targets": TARGETS}
    )

    assert GatewayConfig.model_fields.keys() >= gateway.keys()
    assert routing_rules(config) == Rules(
        pools=("a", "b"),
        page_tokens=32,
        tiers={"fast": "b"},
        pool_policy=PoolPolicy.SPILL,
        target_rate=33.0,
        max_queued_seconds=7.0,
    )
