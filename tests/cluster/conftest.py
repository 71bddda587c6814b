"""One Ray cluster for all tests of this folder; each service on it is an application of its own."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback, and gone with the tests; read when ray is first imported

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from ray import serve

from cluster.client import Client, generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.app import decode_deployment, deployed, start_cluster
from cluster.serving.front import free_ports, gateway_addresses
from engine.config import Config


class Service:
    """A deployed application, its client, and checks of its state."""

    def __init__(self, name: str, config: Config, port: int, proxy_port: int) -> None:
        self.name = name
        self.config = config
        self.port = port
        self.proxy_port = proxy_port
        self.client = Client(f"127.0.0.1:{port}", application=name)

    def client_by(self, way: str) -> Client:
        """Return a client of one of the three fronts, all of which a cluster with HAProxy has."""
        ways = {"haproxy": f"127.0.0.1:{self.port}", "proxy": f"127.0.0.1:{self.proxy_port}"}
        return Client(ways.get(way) or gateway_addresses(self.name)[0], application=self.name)

    def ask(self, prompt: str | list[int], **options: object) -> list[pb.GenerateReply]:
        return list(self.client.generate(generate_request(prompt, **options), timeout=120))

    def ask_all(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """Return the greedy tokens of all prompts, sent at once."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            calls = [
                pool.submit(self.ask, prompt, temperature=0.0, max_tokens=most)
                for prompt, most in zip(prompts, max_tokens, strict=True)
            ]
            return [tokens(call.result()) for call in calls]

    def replica_actors(self, deployment: str) -> list[ray.actor.ActorHandle]:
        prefix = f"SERVE_REPLICA::{self.name}#{deployment}#"
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return [ray.get_actor(name, namespace="serve") for name in names if name.startswith(prefix)]

    def wait_idle(self, seconds: float = 30.0) -> pb.Stats:
        """Wait until no engine has a request; fail if that takes too long."""
        until = time.monotonic() + seconds
        while True:
            stats = self.client.stats()
            busy = [r for r in stats.replicas if r.waiting or r.running or r.leases.held]
            if not busy:
                return stats
            assert time.monotonic() < until, f"still busy: {busy}"
            time.sleep(0.05)

    def wait_for_replicas(self, count: int, seconds: float = 60.0) -> pb.Stats:
        """Wait until so many engines answer; while one dies, the call fails and is repeated."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(grpc.RpcError):
                if len((stats := self.client.stats()).replicas) == count:
                    return stats
            assert time.monotonic() < until, f"fewer than {count} replicas after {seconds} s"
            time.sleep(0.2)

    def assert_idle_and_consistent(self) -> pb.Stats:
        """Check that no request is left, that all pages of all replicas are free, and that engines are consistent."""
        stats = self.wait_idle()
        for replica in stats.replicas:
            for group, pages in replica.pages.items():
                assert pages.free + pages.cached == pages.total, (
                    f"{replica.identity.pool} {replica.identity.replica} leaks in {group}: {pages}"
                )
        for pool in ("Prefill", *map(decode_deployment, self.config.decode)):
            serve.get_deployment_handle(pool, self.name).broadcast("assert_consistent").results()
        return stats


def tokens(replies: list[pb.GenerateReply]) -> list[int]:
    return [token for reply in replies for token in reply.token_ids]


def text(replies: list[pb.GenerateReply]) -> str:
    return "".join(reply.text for reply in replies)


WAYS = ("haproxy", "direct", "proxy")
Deploy = Callable[[str, Config], contextlib.AbstractContextManager[Service]]


@pytest.fixture(scope="package")
def deploy() -> Iterator[Deploy]:
    grpc_port, http_port, proxy_port = free_ports(3)
    gateway = Config.parse({"gateway": {"grpc_port": grpc_port, "http_port": http_port}}).gateway
    with pytest.MonkeyPatch.context() as exported:
        exported.setenv("RAY_SERVE_FALLBACK_PROXY_GRPC_PORT", str(proxy_port))
        start_cluster(gateway)

    @contextlib.contextmanager
    def deploy(name: str, config: Config) -> Iterator[Service]:
        with deployed(config, name, route_prefix=f"/{name}"):
            service = Service(name, config, grpc_port, proxy_port)
            yield service
            service.client.close()

    yield deploy
    serve.shutdown()
    ray.shutdown()


def small(path: Path | None = None, **sections: dict[str, object]) -> Config:
    """Two replicas in each pool, one thread and few pages each; every prompt goes through both pools."""
    engine = {"replicas": 2, "threads": 1, "cache_bytes": "16MiB"}
    model = {"path": str(path), "page_tokens": 16} if path else {}
    return Config.parse(
        {
            "model": model,
            "prefill": {**engine, "chunk_tokens": 96, **sections.get("prefill", {})},
            "decode": {"default": {**engine, "local_chunk_tokens": 0, **sections.get("decode", {})}},
            "gateway": sections.get("gateway", {}),
        }
    )


@pytest.fixture(scope="package")
def shipped(deploy: Deploy) -> Iterator[Service]:
    """The shipped model on two replicas in each pool."""
    with deploy("shipped", small()) as service:
        yield service
