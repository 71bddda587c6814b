"""Where the parts become a Ray Serve application, and where a cluster of one machine is started.

A configuration becomes a Serve deploy config (`deploy_config`), which a running cluster takes as it is: from
`sparkpool serve`, from `serve deploy` or over Serve's REST interface. Serve calls `application` with its `args`.
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster import autoscale, router
from cluster.front import environment, wait_for_answer
from cluster.proxy import APPLICATION
from cluster.replicas import DecodeReplica, PrefillReplica
from cluster.servicer import InferenceServicer
from engine.config import Config, EngineConfig, GatewayConfig
from engine.errors import ConfigError
from local.policies import scaling_bounds, scaling_targets

SERVICERS = ["cluster.proxy.add_servicers"]
PREFILL, GATEWAY = "Prefill", "Gateway"
MARGIN_SECONDS = 10.0  # between the end of the last request of a gateway and its own
STATUS_SECONDS, PATIENCE_SECONDS = 0.2, 5.0


def application(args: dict[str, Any]) -> Application:
    """What Serve calls with the `args` of a deploy config: a configuration as in the YAML file."""
    return build(Config.parse(args))


def build(config: Config) -> Application:
    """Gateway over a prefill pool and the decode pools, as one Serve application."""
    options = _engine_options(config.prefill, "prefill")
    prefill = serve.deployment(PrefillReplica, name=PREFILL, **options).bind(config)
    decode = {
        pool: serve.deployment(
            DecodeReplica, name=decode_deployment(pool), **_engine_options(section, f"decode.{pool}")
        ).bind(config, pool)
        for pool, section in config.decode.items()
    }
    gateway = serve.deployment(
        InferenceServicer,
        name=GATEWAY,
        max_ongoing_requests=config.gateway.max_ongoing,
        max_queued_requests=config.gateway.max_queued,
        ray_actor_options={"num_cpus": 0},
        # A gateway that is taken away finishes what it has begun, however long that may take; another is there before.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.gateway.request_seconds + MARGIN_SECONDS,
        **_gateway_count(config),
    )
    return gateway.bind(config, prefill, decode)


def _gateway_count(config: Config) -> dict[str, Any]:
    """As many as the configuration says. Serve takes a gateway's numbers to the policy only if that scales it too."""
    count = config.gateway.replicas
    return {"autoscaling_config": _between(count, count)} if config.scaled else {"num_replicas": count}


def _between(least: int, most: int) -> AutoscalingConfig:
    """Bounds for a policy of ours, which has its own patience and wants to hear how things stand once a second. (That
    is deprecated here, and Serve 2.60 looks nowhere else: by the switches that it names, numbers came every 10 s.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            upscale_delay_s=0,
            downscale_delay_s=0,
            metrics_interval_s=autoscale.PERIOD_SECONDS,
            look_back_period_s=5 * autoscale.PERIOD_SECONDS,
        )


def decode_deployment(pool: str) -> str:
    """The name of a decode pool's deployment in Serve."""
    return f"Decode-{pool}"


def _engine_options(section: EngineConfig, key: str) -> dict[str, Any]:
    """Raises ConfigError if Serve does not take the section's autoscaling_config."""
    scale: dict[str, Any] = {"num_replicas": section.replicas}
    if section.scale is not None:
        scale = {"autoscaling_config": _between(section.scale.min_replicas, section.scale.max_replicas)}
    if section.autoscaling_config is not None:
        unknown = section.autoscaling_config.keys() - AutoscalingConfig.model_fields.keys()  # Serve would ignore them
        if unknown:
            raise ConfigError(f"{key}.autoscaling_config.{min(unknown)}: unknown key")
        try:
            scale = {"autoscaling_config": AutoscalingConfig(**section.autoscaling_config)}
        except (ValidationError, ValueError) as error:
            raise ConfigError(f"{key}.autoscaling_config: {error}") from None
    return {
        **scale,
        # The engine has its own queue and turns away by itself; statistics and health must always get through.
        "max_ongoing_requests": section.max_requests + section.max_waiting + 64,
        "ray_actor_options": {
            "num_cpus": section.num_cpus,
            "num_gpus": int(section.torch_device.type == "cuda"),
            "resources": section.resources,
        },
        "request_router_config": RequestRouterConfig(request_router_class=router.PATH),
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": section.drain_seconds,
        "max_surge_percent": section.surge_percent,
    }


def start_cluster(gateway: GatewayConfig) -> None:
    """Start Ray and Serve's front on this machine, bound to loopback as far as Serve allows. Raises ConfigError.

    Ray's own plane asks for a token (kept under ~/.ray): Ray's default for a new cluster, unless RAY_AUTH_MODE says
    otherwise. Setting that here, after the import of ray, would be too late.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with environment(gateway):
        ray.init(
            address="local",
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    serve.start(
        http_options=HTTPOptions(host=gateway.http_host, port=gateway.http_port),
        grpc_options=gRPCOptions(port=gateway.grpc_port, grpc_servicer_functions=SERVICERS),
    )


@contextlib.contextmanager
def deployed(config: Config, name: str = APPLICATION, route_prefix: str = "/") -> Iterator[None]:
    """`config` as one more application of the running cluster, up and warm; drained and deleted when the block ends.

    Serve registers gRPC endpoints only for an application that has a route prefix.
    """
    serve.run(build(config), name=name, route_prefix=route_prefix)
    try:
        wait_for_answer(name)
        yield
    finally:
        serve.delete(name)


def deploy_config(config: Config) -> dict[str, Any]:
    """`config` as a Serve deploy config (ray.serve.schema.ServeDeploySchema). Raises ConfigError."""
    build(config)  # what Serve would refuse is refused here
    gateway = config.gateway
    policy = {"autoscaling_policy": _service_levels(config)} if config.scaled else {}
    return {
        "http_options": {"host": gateway.http_host, "port": gateway.http_port},
        "grpc_options": {"port": gateway.grpc_port, "grpc_servicer_functions": SERVICERS},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "cluster.app:application",
                "args": config.model_dump(mode="json", exclude_unset=True),
                **policy,
            }
        ],
    }


def _service_levels(config: Config) -> dict[str, Any]:
    """Serve's application-level policy, with all that it has to know."""
    return {
        "policy_function": autoscale.PATH,
        "policy_kwargs": {
            "targets": asdict(scaling_targets(config)),
            "bounds": {pool: asdict(bounds) for pool, bounds in scaling_bounds(config).items()},
            "pools": {PREFILL: "prefill"} | {decode_deployment(pool): pool for pool in config.decode},
            "gateway": GATEWAY,
            "record": None if config.targets.record is None else str(config.targets.record),
        },
    }


def submit(content: dict[str, Any], progress: Callable[[str], None] = lambda _: None) -> None:
    """Deploy to the cluster this process is connected to, and wait until everything runs.

    `progress` is told how things stand whenever that changes, and every PATIENCE_SECONDS. Raises ConfigError with
    Serve's reason.
    """
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(content))
    told, began = ("", 0.0), time.monotonic()
    while True:
        status = serve.status().applications[APPLICATION]
        now = ", ".join(f"{name} {_replicas(d.replica_states)}" for name, d in sorted(status.deployments.items()))
        seconds = time.monotonic() - began
        if now != told[0] or seconds - told[1] >= PATIENCE_SECONDS:
            progress(f"{seconds:3.0f} s: {now}")
            told = now, seconds
        if status.status == "RUNNING":
            return
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [status.message, *(d.message for d in status.deployments.values())]
            raise ConfigError("Serve could not deploy this: " + "\n".join(reason for reason in reasons if reason))
        time.sleep(STATUS_SECONDS)


def _replicas(states: dict[str, int]) -> str:
    return "+".join(f"{count} {str(state).lower()}" for state, count in states.items()) or "waiting"


@contextlib.contextmanager
def running(config: Config, progress: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A cluster of this machine that serves `config`; nothing is left of it when the block ends."""
    content = deploy_config(config)
    try:
        start_cluster(config.gateway)
        submit(content, progress)
        try:
            wait_for_answer(APPLICATION)
            yield
        finally:
            serve.delete(APPLICATION)
            serve.shutdown()  # or an HAProxy that is just being started would outlive Ray
    finally:
        ray.shutdown()
