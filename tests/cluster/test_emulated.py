"""A plain decode pool and an emulated device in one service: the same tokens, each at its own pace."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from engine.config import SHIPPED_MODEL, Config
from local.emulate import Emulation
from tests.cluster.conftest import Deploy, Service
from tests.cluster.test_cli import sparkpool

SECTION = {"threads": 1, "cache_bytes": "16MiB"}
LPX = {
    **SECTION,
    "device": "groq-3-lpx",
    "emulation": {"model": "deepseek-v4-flash", "time_scale": 800.0, "assumed": {"bridge": 5.0}},
}
CONFIG = {
    "prefill": SECTION,
    "decode": {"here": {**SECTION, "local_chunk_tokens": 0}, "lpx": LPX},
    "gateway": {"tiers": {"interactive": "lpx", "standard": "here"}},
}
PROMPT = "def read_json(path):"


@pytest.fixture(scope="module")
def service(deploy: Deploy) -> Iterator[Service]:
    with deploy("emulated", Config.parse(CONFIG)) as service:
        yield service


def test_the_tier_chooses_the_pool_and_the_tokens_are_the_same(service: Service) -> None:
    by_tier = {
        tier: service.ask(PROMPT, temperature=0.0, max_tokens=16, service_tier=tier)
        for tier in ("standard", "interactive")
    }
    text = {tier: "".join(reply.text for reply in replies) for tier, replies in by_tier.items()}
    timings = {tier: replies[-1].timings for tier, replies in by_tier.items()}
    step = Emulation.of(service.config, "lpx", 0).times.verify_seconds(1, 1, 10)

    assert text["standard"] == text["interactive"]
    assert timings["standard"].emulated == ""
    assert timings["interactive"].emulated == "groq-3-lpx, time x 800"
    assert timings["interactive"].decode_seconds >= 15 * 0.99 * step > 0.3
    stats = {replica.identity.pool: replica for replica in service.client.stats().replicas}
    assert stats["lpx"].identity.emulated == "groq-3-lpx, time x 800"
    assert stats["lpx"].counters.steps >= 15 and stats["here"].identity.emulated == ""
    assert stats["lpx"].counters.local_prefills == 0


def test_a_tier_that_is_not_there_is_a_bad_request(service: Service) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        service.ask(PROMPT, max_tokens=1, service_tier="gold")

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "service_tier: unknown service tier 'gold'; the tiers are: interactive, standard"


def test_the_bench_names_the_emulated_device(service: Service, tmp_path: Path) -> None:
    """The same bench drives both."""
    found = {}
    for tier in ("interactive", "standard"):
        file = tmp_path / f"{tier}.json"
        done = sparkpool(
            *("bench", "--address", f"127.0.0.1:{service.port}", "--application", service.name),
            *("--requests", "6", "--concurrency", "2", "--input-tokens", "20", "--output-tokens", "10"),
            *("--service-tier", tier, "--json", str(file)),
        )
        assert done.returncode == 0, done.stderr
        found[tier] = json.loads(file.read_text())["summary"]
        assert ("EMULATED groq-3-lpx, time x 800" in done.stdout) == (tier == "interactive")

    assert found["standard"]["emulated"] is None
    assert found["interactive"]["emulated"]["requests"] == 6
    assert found["interactive"]["latency"]["tpot"]["mean"] > found["standard"]["latency"]["tpot"]["mean"]


def test_the_shipped_file_is_served_as_it_stands() -> None:
    config = Config.load(SHIPPED_MODEL.parent.parent / "deploy" / "emulated.yaml")

    emulation = Emulation.of(config, "lpx", 0)
    assert emulation.roofline.placement.units == 512
    assert emulation.times.verify_seconds(1, 1, 1000) > 0.02
