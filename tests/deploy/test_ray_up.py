"""`ray up` over SSH: deploy/local.yaml and deploy/two-and-two.yaml, as they ship, on hosts that share nothing but the
kernel. Prefill and decode are on different hosts, and pages go from one to the other over the network."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from engine.config import Config
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.deploy.lab import ROOT, Lab, missing, wait_until_gone

reason = missing()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"no lab of hosts: {reason}"),
    pytest.mark.timeout(900),
]
HOSTS = {"head": "{}", "prefill": '{"prefill": 2}', "decode": '{"decode": 2}'}
ON_CPU = {"device": "cpu", "cache_bytes": "32MiB"}
LENGTHS, MAX_TOKENS = (3000, 1500, 40), 12
ASK = ("python", "-m", "tests.deploy.ask")
STARTUP_SECONDS = 480.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(HOSTS) as lab:
        yield lab
    wait_until_gone(lab.namespaces)  # and with them links, mounts and files: see test_lab.py


def cluster_file(lab: Lab) -> dict[str, Any]:
    """deploy/local.yaml with what it says must be changed."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy/local.yaml").read_text())
    head, *workers = lab.addresses.values()
    content["provider"] |= {"head_ip": head, "worker_ips": workers}
    content["auth"]["ssh_user"] = "root"
    return content


def serve_file() -> dict[str, Any]:
    """deploy/two-and-two.yaml for machines without a GPU, and the model that comes with the code."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy/two-and-two.yaml").read_text())
    del content["model"]
    for section in (content["prefill"], *content["decode"].values()):
        section |= ON_CPU
    content["decode"]["default"]["local_chunk_tokens"] = 0  # every prompt crosses the network
    return content


def prompts() -> list[list[int]]:
    """Make random prompts, so that no page is shared and none is found in a cache."""
    dice = random.Random(13)
    return [[dice.randrange(300, 4000) for _ in range(length)] for length in LENGTHS]


def test_a_cluster_made_by_ray_up_serves_across_its_hosts(lab: Lab) -> None:
    head = lab.addresses["head"]
    cluster = lab.write("/tmp/cluster.yaml", yaml.safe_dump(cluster_file(lab)))
    service = lab.write("/tmp/service.yaml", yaml.safe_dump(serve_file()))
    lab.run("ray", "get-auth-token", "--generate")

    began = time.monotonic()
    lab.run("ray", "up", "-y", "--no-config-cache", cluster, seconds=400)
    up = time.monotonic() - began
    lab.run("sparkpool", "serve", service, "--submit", f"http://{head}:8265", seconds=300)
    waited = json.loads(lab.run(*ASK, "wait", head, str(STARTUP_SECONDS), seconds=STARTUP_SECONDS + 30))
    served = time.monotonic() - began
    before = lab.received_bytes("decode")
    question = json.dumps({"prompts": prompts(), "max_tokens": MAX_TOKENS})
    answer = json.loads(lab.run(*ASK, "greedy", head, stdin=question))
    received = lab.received_bytes("decode") - before
    placed = {host: replicas(lab.programs(host)) for host in HOSTS}
    stopped = time.monotonic()
    lab.run("ray", "down", "-y", cluster)
    for host in ("prefill", "decode"):
        lab.ssh(host, "ray stop --grace-period 4")
    left = {host: lab.programs(host) for host in HOSTS}
    print(f"ray up {up:.0f} s, served after {served:.0f} s, down in {time.monotonic() - stopped:.0f} s")
    print(f"moved {answer['moved_bytes']:,} bytes in {answer['reads']} reads, received {received:,}")

    assert answer["tokens"] == in_one_process(prompts())
    assert waited["stranger"] == 401, "who has no token is turned away"
    assert placed["prefill"] == ["Prefill", "Prefill"]
    assert placed["decode"] == ["Decode-default", "Decode-default"]
    assert placed["head"] == []
    assert answer["reads"] == len(LENGTHS)
    assert received >= answer["moved_bytes"] > 2 * (received - answer["moved_bytes"]), "pages, not what else there is"
    assert left == {host: [] for host in HOSTS}


def replicas(programs: list[str]) -> list[str]:
    """Return the pools whose replicas are among these programs: ray::ServeReplica:sparkpool:POOL."""
    found = [program.split(":")[4] for program in programs if program.startswith("ray::ServeReplica:sparkpool:")]
    return sorted(name.split(".")[0] for name in found if not name.startswith("Gateway"))


def in_one_process(prompts: list[list[int]]) -> list[list[int]]:
    """Return the greedy tokens of both pools in this process, without Ray and without a network."""
    pair = Pair(Config.parse({"prefill": {"cache_bytes": "32MiB"}, "decode": {"default": {"cache_bytes": "32MiB"}}}))
    greedy, stop = Sampling(temperature=0.0), StopRules(max_tokens=MAX_TOKENS)
    requests = [
        Request(id=str(number), prompt=tuple(prompt), sampling=greedy, stop=stop)
        for number, prompt in enumerate(prompts)
    ]
    return list(pair.generate(requests).values())
