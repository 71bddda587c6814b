"""Sets up how clients reach the gateways: one of three fronts, chosen by environment variables when Ray starts.

    haproxy    client -> HAProxy -> gateway           one address for all applications and gateways of a node
    direct     client -> gateway                      each gateway has its own port, for an external load balancer
    proxy      client -> Serve's proxy -> gateway     a Python process that decodes and encodes each message

A gateway behaves the same behind all three. With the first two it listens for clients itself, and Serve calls
`cluster.serving.proxy.add_servicers` in each gateway instead of in its proxies.
"""

import contextlib
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from itertools import islice

import grpc
import ray
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from ray.serve._private.haproxy import get_haproxy_binary
from ray.serve.context import _get_global_client

from engine.config import GatewayConfig
from engine.errors import ConfigError

# Replies between replicas and to the proxy go over gRPC streams instead of Ray objects, and our code runs in the
# replica's own event loop. So a message costs a third of the processor time on every hop, and the next message of a
# stream is only asked for when the last one has been sent.
SWITCHES = {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
FRONT_SWITCHES = {
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "direct": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
    "proxy": {},
}
HAPROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
# Ray wants a gateway to fail if its port is taken, but passes `so_reuseport` to gRPC as text, which gRPC ignores: the
# gateways of two clusters on one machine would share a port. So each cluster gets its own block of ports.
GATEWAY_PORTS = range(22000, 30000, 100)
ANSWER_SECONDS, POLL_SECONDS = 60.0, 0.05
NOT_READY_YET = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


def switches(gateway: GatewayConfig) -> dict[str, str]:
    """Return the environment variables that every `ray start` of a cluster with this front needs."""
    return {
        **SWITCHES,
        **FRONT_SWITCHES[gateway.front],
        # How long a stopping gateway still accepts requests, until the front knows that it stops.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{gateway.drain_seconds:g}",
        # When gateways come or go, a new HAProxy process takes over; the old one serves its streams this long.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(gateway.request_seconds)),
        # Beyond this limit HAProxy lets a client's requests wait; the gateway refuses them (gateway.max_queued).
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": str(2**16),
    }


@contextlib.contextmanager
def environment(gateway: GatewayConfig) -> Iterator[None]:
    """Set the environment variables for what the block starts; those that are set already keep their values.

    Ports for the gateways and four ports for HAProxy are chosen among free ones, so that several clusters can run on a
    machine. Raises ConfigError if HAProxy is missing or a port of the front is taken.
    """
    wanted = switches(gateway)
    for name, port in (("grpc_port", gateway.grpc_port), ("http_port", gateway.http_port)):
        if _taken(port):  # Serve would share it
            raise ConfigError(f"gateway.{name}: another process listens on port {port} already")
    blocks = random.Random().sample(GATEWAY_PORTS, len(GATEWAY_PORTS))
    lowest = next(low for low in blocks if not any(map(_taken, _block(low))))
    wanted["RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT"] = str(lowest)
    wanted["RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT"] = str(_block(lowest)[-1])
    if gateway.front == "haproxy":
        try:
            get_haproxy_binary()
        except FileNotFoundError as error:
            raise ConfigError(f"gateway.front: haproxy: {error} Or set it to proxy.") from None
        ports = free_ports(len(HAPROXY_PORTS) + 2)
        others = [port for port in ports if port not in (gateway.grpc_port, gateway.http_port)]
        wanted |= {name: str(port) for name, port in zip(HAPROXY_PORTS, others, strict=False)}
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def wait_for_answer(application: str) -> None:
    """Wait until the front can reach the application, which is a moment after Serve says that it runs.

    Raises ConfigError after ANSWER_SECONDS.
    """
    at = address()
    until = time.monotonic() + ANSWER_SECONDS
    with grpc.insecure_channel(at) as channel:
        while True:
            try:
                HealthStub(channel).Check(
                    HealthCheckRequest(), metadata=(("application", application),), timeout=ANSWER_SECONDS
                )
                return
            except grpc.RpcError as error:
                if error.code() not in NOT_READY_YET or time.monotonic() > until:
                    reason = f"{error.code().name}: {error.details()}"
                    raise ConfigError(f"gateway.grpc_port: {application} cannot be reached at {at}: {reason}") from None
            time.sleep(POLL_SECONDS)


def address() -> str:
    """Return host:port of the front of the cluster that this process is connected to, for clients on this machine."""
    client = _get_global_client()
    host = client.http_config.host
    port = ray.get(client._controller.get_grpc_config.remote()).port
    return f"{'127.0.0.1' if host in (None, '', '0.0.0.0', '::') else host}:{port}"


def addresses(gateway: GatewayConfig, application: str) -> list[str]:
    """Return host:port of the front, and with `front: direct` of each gateway, for clients on this machine."""
    return [address(), *(gateway_addresses(application) if gateway.front == "direct" else [])]


def gateway_addresses(application: str) -> list[str]:
    """Return host:port of each gateway that listens for clients itself; none does with `front: proxy`."""
    controller = _get_global_client()._controller
    groups = ray.get(controller.get_target_groups.remote(application, from_proxy_manager=True))
    return [
        f"{target.ip}:{target.port}"
        for group in groups
        if group.protocol.value == "gRPC"
        for target in group.targets
        if target.name.startswith("SERVE_REPLICA")
    ]


def free_ports(count: int) -> list[int]:
    """Return free ports below Ray's worker ports (10002-19999), at random so that two simultaneous callers differ."""
    drawn = random.Random().sample(range(9000, 10000), 1000)
    found = list(islice((port for port in drawn if not _taken(port)), count))
    if len(found) < count:
        raise RuntimeError(f"fewer than {count} free ports between 9000 and 9999")
    return found


def _block(lowest: int) -> range:
    return range(lowest, lowest + GATEWAY_PORTS.step)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
