"""Tests that the memory estimated without loading a replica is what it uses once loaded."""

from pathlib import Path

import pytest

from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.errors import ConfigError
from local import Builder
from local.footprint import ReplicaFootprint, replica_footprints


def footprint_of(config: Config, pool: str) -> ReplicaFootprint:
    return replica_footprints(config)[pool]


@pytest.mark.parametrize(("family", "drafter"), [("tiny-mla", None), ("tiny-mla", SHIPPED_DRAFTER), ("qwen3", None)])
def test_layout_and_weights_are_those_of_the_loaded_model(family: str, drafter: Path | None, qwen3: Path) -> None:
    path = qwen3 if family == "qwen3" else SHIPPED_MODEL
    config = Config.parse({"model": {"path": path, "drafter": drafter}, "decode": {"a": {}, "b": {"drafting": False}}})
    drafting, plain = footprint_of(config, "decode.a"), footprint_of(config, "decode.b")

    assert drafting.layout == Builder(config, config.decode["a"]).layout
    assert plain.layout == Builder(config, config.decode["b"]).layout
    assert (drafting.weights_bytes > plain.weights_bytes) == (drafter is not None)


def test_pages_get_the_memory_that_the_weights_leave() -> None:
    one = footprint_of(Config.parse({"prefill": {"cache_bytes": "1MiB"}}), "prefill")
    exactly = one.weights_bytes + 2**20

    assert one.taken(exactly, "here") == exactly
    with pytest.raises(ConfigError, match=r"cache_bytes: .* free on here"):
        one.taken(exactly - 1, "here")
    with pytest.raises(ConfigError, match=r"of weights, .* free on here"):
        one.taken(one.weights_bytes - 1, "here")
