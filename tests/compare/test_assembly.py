"""A pool's replica is put together the same in a cluster and in the simulator."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import local.assemble
from compare.replica import Replica, VirtualWorld
from compare.virtual import SimulatedNetwork, Timeline
from decode.decoder import Decoder
from engine.config import Config
from engine.engine import Engine
from engine.local_transfer import LocalTransfer, LocalWire
from engine.text import Text
from local.build import Builder
from local.colocated import ColocatedEngine
from prefill.prefiller import Prefiller
from tests.compare.machines import simulated_pool

MIB = 2**20
LPX = {"device": "groq-3-lpx", "emulation": {"model": "deepseek-v4-flash"}}


def built(config: Config, pool: str) -> Engine:
    """What a replica of the cluster runs."""
    wire = LocalWire()
    builder = Builder(config, config.pools[pool])
    if pool == "prefill":
        return builder.prefiller("agent", lambda name, store: LocalTransfer(name, store, wire))
    text = Text.load(config.model.path)
    return builder.decode_engine("agent", lambda name, store: LocalTransfer(name, store, wire), text, pool)


def simulated(config: Config, pool: str) -> Engine:
    """What a replica of the simulator runs."""
    world = VirtualWorld(Timeline(), SimulatedNetwork(0.0), [], seed=0)
    return Replica("replica", pool, config.pools[pool], simulated_pool(), world).engine


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each Prefiller and Decoder that is put together, in order."""
    found: list[dict[str, Any]] = []

    def noted(kind: type, **arguments: Any) -> Any:
        found.append({"kind": kind, **arguments})
        return kind(**arguments)

    monkeypatch.setattr(local.assemble, "Prefiller", partial(noted, Prefiller))
    monkeypatch.setattr(local.assemble, "Decoder", partial(noted, Decoder))
    return found


def composition(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was chosen for an engine, without the leaves that the two worlds supply."""
    chosen = ("kind", "config", "section", "spare_tokens", "poll_seconds", "drafter_fingerprint")
    return [
        {name: part.get(name) for name in chosen} | {"planner": type(part.get("planner")), "parts": part.keys()}
        for part in made
    ]


@pytest.mark.parametrize(
    ("pool", "section", "kind"),
    [
        ("prefill", {"chunk_tokens": 96, "max_waiting": 5}, Prefiller),
        ("default", {}, ColocatedEngine),
        ("default", {"local_chunk_tokens": 32, "max_requests": 3, "max_waiting": 4}, ColocatedEngine),
        ("default", {"local_chunk_tokens": 0}, Decoder),
        ("default", LPX, Decoder),
    ],
    ids=["prefill", "colocated", "small chunks", "no local prefill", "emulated"],
)
def test_both_worlds_put_the_same_engine_together(
    pool: str, section: dict[str, Any], kind: type, qwen3: Path, made: list[dict[str, Any]]
) -> None:
    sized = {"cache_bytes": 4 * MIB, **section}
    sections = {"prefill": sized} if pool == "prefill" else {"decode": {pool: sized}}
    config = Config.parse({"model": {"path": qwen3}, **sections})

    real = built(config, pool)
    parts = made.copy()
    made.clear()
    virtual = simulated(config, pool)

    assert type(real) is type(virtual) is kind
    assert len(parts) == (2 if kind is ColocatedEngine else 1)
    assert composition(parts) == composition(made)
    for engine in (parts, made):  # both engines of a replica work on the same pages
        assert all(part["pages"] is engine[0]["pages"] and part["clock"] is engine[0]["clock"] for part in engine)
