"""The ways from a client to a gateway: what chooses them, and that none of them changes what is said."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import cluster.serving.front
from cluster.client import Client, generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.front import HAPROXY_PORTS, environment, free_ports, switches
from engine.config import GatewayConfig
from engine.errors import ConfigError
from tests.cluster.conftest import WAYS, Deploy, Service, small, text, tokens
from tests.cluster.test_cli import ROOT, sparkpool, wait_for

HAPROXY, DIRECT = "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_ENABLE_DIRECT_INGRESS"


@pytest.mark.parametrize(("front", "on"), [("haproxy", {HAPROXY}), ("direct", {DIRECT}), ("proxy", set())])
def test_the_front_is_one_of_rays_switches(front: str, on: set[str]) -> None:
    chosen = switches(GatewayConfig(front=front, drain_seconds=7, request_seconds=601.5))

    assert {HAPROXY, DIRECT} & chosen.keys() == on
    assert chosen["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "7"
    assert chosen["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "602"


def test_what_is_exported_stays_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", "9101")
    before = dict(os.environ)

    with environment(own_ports()):
        ports = [os.environ[name] for name in HAPROXY_PORTS]
        assert os.environ[HAPROXY] == "1"

    assert ports[1] == "9101"
    assert len(set(ports)) == 4
    assert dict(os.environ) == before


def test_without_an_haproxy_the_error_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("Could not find an HAProxy binary.")

    monkeypatch.setattr(cluster.serving.front, "get_haproxy_binary", missing)

    with pytest.raises(ConfigError, match=r"gateway\.front: haproxy: Could not find"), environment(own_ports()):
        pass
    with environment(own_ports().model_copy(update={"front": "proxy"})):
        pass


@pytest.mark.parametrize("key", ["grpc_port", "http_port"])
def test_a_port_that_is_taken_is_named(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        gateway = own_ports().model_copy(update={key: other.getsockname()[1]})
        with (
            pytest.raises(ConfigError, match=rf"gateway\.{key}: another process listens on port \d+"),
            environment(gateway),
        ):
            pass


def test_gateways_of_two_clusters_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all hundreds but the last, one port is taken."""
    monkeypatch.setattr(cluster.serving.front, "_taken", lambda port: port % 100 == 50 and 22000 <= port < 29900)

    with environment(GatewayConfig()):
        names = [f"RAY_SERVE_DIRECT_INGRESS_{end}_GRPC_PORT" for end in ("MIN", "MAX")]
        assert [os.environ[name] for name in names] == ["29900", "29999"]


def own_ports() -> GatewayConfig:
    grpc_port, http_port = free_ports(2)
    return GatewayConfig(grpc_port=grpc_port, http_port=http_port)


@pytest.mark.parametrize("way", WAYS)
def test_answers_and_errors_are_the_same_by_every_way(shipped: Service, way: str) -> None:
    answer = shipped.ask("import os\n", temperature=0.0, max_tokens=8)
    with shipped.client_by(way) as client:
        request = generate_request("import os\n", temperature=0.0, max_tokens=8)
        assert text(list(client.generate(request))) == text(answer)
        assert list(client.generate_once(request).answers[0].token_ids) == tokens(answer)
        for call in (lambda bad: list(client.generate(bad)), client.generate_once):
            with pytest.raises(grpc.RpcError) as refused:
                call(pb.GenerateRequest(prompt="x", max_tokens=-3))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert refused.value.details() == "max_tokens: must be at least 1, is -3"


def test_more_streams_than_haproxy_takes_by_itself_go_at_once(shipped: Service) -> None:
    """On one connection, where its own limit is 100: the others would wait without a word."""
    stub = health_pb2_grpc.HealthStub(shipped.client.channel)
    request, metadata = health_pb2.HealthCheckRequest(), shipped.client.metadata

    watches = [stub.Watch(request, metadata=metadata, timeout=60) for _ in range(130)]

    assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 130
    for watch in watches:
        watch.cancel()


def test_a_stream_goes_on_while_other_applications_come_and_go(shipped: Service, deploy: Deploy) -> None:
    """Each time HAProxy is replaced by a process that knows the new list."""
    stub = health_pb2_grpc.HealthStub(shipped.client.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=shipped.client.metadata, timeout=200)
    next(watch)

    with deploy("passing", small(prefill={"replicas": 1}, decode={"replicas": 1})) as other:
        assert tokens(other.ask("import os", temperature=0.0, max_tokens=2))
        assert watch.is_active()
    with Client(f"127.0.0.1:{shipped.port}", "passing") as late, pytest.raises(grpc.RpcError) as gone:
        late.model()
    assert gone.value.code() == grpc.StatusCode.NOT_FOUND

    assert watch.is_active()
    watch.cancel()
    assert tokens(shipped.ask("import os", temperature=0.0, max_tokens=2))


def test_whom_no_gateway_has_room_for_is_told_so(deploy: Deploy) -> None:
    config = small(prefill={"replicas": 1}, decode={"replicas": 1}, gateway={"max_ongoing": 1, "max_queued": 2})
    with deploy("narrow", config) as service:

        def status(_: int) -> str:
            try:
                return "OK" if service.ask("x = 1\n", temperature=0.0, max_tokens=200, ignore_eos=True) else "empty"
            except grpc.RpcError as error:
                return error.code().name

        with ThreadPoolExecutor(6) as pool:
            found = sorted(pool.map(status, range(6)))

        assert found == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 3
        service.assert_idle_and_consistent()


@pytest.mark.parametrize("front", ["direct", "proxy"])
def test_the_other_fronts_serve(tmp_path: Path, front: str) -> None:
    grpc_port, http_port = free_ports(2)
    engine = "{cache_bytes: 16MiB, threads: 1}"
    gateway = f"{{front: {front}, drain_seconds: 0.5, grpc_port: {grpc_port}, http_port: {http_port}}}"
    config, log = tmp_path / "service.yaml", tmp_path / "serve.log"
    config.write_text(f"prefill: {engine}\ndecode: {{default: {engine}}}\ngateway: {gateway}\n")
    with log.open("w") as output:
        words = [sys.executable, "-m", "cluster.cli", "serve", str(config)]
        server = subprocess.Popen(words, stdout=output, stderr=output, cwd=ROOT)
    try:
        wait_for(lambda: "Ready" in log.read_text() or server.poll() is not None, seconds=120)
        ready = next(line for line in log.read_text().splitlines() if "Ready" in line)
        addresses = [word.rstrip(",") for word in ready.split() if word.rstrip(",")[-4:].isdigit()]
        for address in addresses:
            answer = sparkpool("generate", "import os", "--max-tokens", "9", "--address", address)
            assert "[9 tokens" in answer.stderr, log.read_text() + answer.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert len(addresses) == {"direct": 2, "proxy": 1}[front]
