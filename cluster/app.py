"""Where the parts become a Ray Serve application, and where a cluster of one machine is started."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions, gRPCOptions

from cluster.proxy import APPLICATION
from cluster.replicas import DecodeReplica, PrefillReplica
from cluster.servicer import InferenceServicer
from engine.config import Config, EngineConfig, GatewayConfig

SERVICERS = ["cluster.proxy.add_servicers"]


def build(config: Config) -> Application:
    """Gateway over a prefill and a decode pool, as one Serve application."""
    prefill = serve.deployment(PrefillReplica, name="Prefill", **_engine_options(config.prefill)).bind(config)
    decode = serve.deployment(DecodeReplica, name="Decode", **_engine_options(config.decode)).bind(config)
    gateway = serve.deployment(
        InferenceServicer,
        name="Gateway",
        num_replicas=config.gateway.replicas,
        max_ongoing_requests=config.gateway.max_ongoing,
        max_queued_requests=config.gateway.max_queued,
        ray_actor_options={"num_cpus": 0},
    )
    return gateway.bind(config, prefill, decode)


def _engine_options(section: EngineConfig) -> dict[str, Any]:
    return {
        "num_replicas": section.replicas,
        # The engine has its own queue and turns away by itself; statistics and health must always get through.
        "max_ongoing_requests": section.max_requests + section.max_waiting + 64,
        "ray_actor_options": {"num_cpus": section.num_cpus, "num_gpus": int(section.torch_device.type == "cuda")},
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": 120,
    }


def start_cluster(gateway: GatewayConfig) -> None:
    """Start Ray and Serve's proxies on this machine, bound to loopback as far as Serve allows.

    Ray's own plane asks for a token (kept under ~/.ray): Ray's default for a new cluster, unless RAY_AUTH_MODE says
    otherwise. Setting that here, after the import of ray, would be too late.
    """
    ray.init(
        address="local",
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host=gateway.http_host, port=gateway.http_port),
        grpc_options=gRPCOptions(port=gateway.grpc_port, grpc_servicer_functions=SERVICERS),
    )


@contextlib.contextmanager
def deployed(config: Config, name: str = APPLICATION, route_prefix: str = "/") -> Iterator[None]:
    """`config` as an application of the running cluster, up and warm; drained and deleted when the block ends.

    Serve registers gRPC endpoints only for an application that has a route prefix.
    """
    serve.run(build(config), name=name, route_prefix=route_prefix)
    try:
        yield
    finally:
        serve.delete(name)


@contextlib.contextmanager
def running(config: Config) -> Iterator[None]:
    """A cluster of this machine that serves `config`; nothing is left of it when the block ends."""
    try:
        start_cluster(config.gateway)
        with deployed(config):
            yield
    finally:
        ray.shutdown()
