"""Builds the Ray Serve application of a configuration, and starts a cluster on this machine.

`deploy_config` turns a configuration into a Serve deploy config, which a running cluster accepts from `sparkpool
serve`, `serve deploy` or Serve's REST interface. Serve calls `application` with its `args`.
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.serving import autoscale, router
from cluster.serving.front import environment, wait_for_answer
from cluster.serving.proxy import APPLICATION, GATEWAY
from cluster.serving.replicas import DecodeDeployment, PrefillDeployment
from cluster.serving.servicer import InferenceServicer
from engine.config import Config, EngineConfig, GatewayConfig
from engine.errors import ConfigError
from local.policies import scaling_bounds, scaling_targets

SERVICERS = ["cluster.serving.proxy.add_servicers"]
PREFILL = "Prefill"
MARGIN_SECONDS = 10.0  # from the end of a gateway's last request until it is stopped
POLL_SECONDS, PROGRESS_SECONDS = 0.2, 5.0
RAY_LOGS = "see gcs_server.out and raylet.out in /tmp/ray/session_latest/logs; a busy machine may be too slow for Ray"


def application(args: dict[str, object]) -> Application:
    """Build the application from the `args` of a deploy config, which are a configuration as in the YAML file."""
    return build(Config.parse(args))


def build(config: Config) -> Application:
    """Return the Serve application: a gateway that calls a prefill pool and the decode pools."""
    options = _engine_options(config.prefill, "prefill")
    prefill = serve.deployment(PrefillDeployment, name=PREFILL, **options).bind(config)
    decode = {
        pool: serve.deployment(
            DecodeDeployment, name=decode_deployment(pool), **_engine_options(section, f"decode.{pool}")
        ).bind(config, pool)
        for pool, section in config.decode.items()
    }
    gateway = serve.deployment(
        InferenceServicer,
        name=GATEWAY,
        max_ongoing_requests=config.gateway.max_ongoing,
        max_queued_requests=config.gateway.max_queued,
        ray_actor_options={"num_cpus": 0},
        # A gateway that is stopped finishes its requests first; its replacement starts before.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.gateway.request_seconds + MARGIN_SECONDS,
        **_gateway_count(config),
    )
    return gateway.bind(config, prefill, decode)


def _gateway_count(config: Config) -> dict[str, object]:
    """Return options for the configured number of gateways. Serve gives our policy the load of a deployment only if the
    policy may scale it, so gateways get bounds too if any pool is scaled."""
    count = config.gateway.replicas
    return {"autoscaling_config": _between(count, count)} if config.scaled else {"num_replicas": count}


def _between(minimum: int, maximum: int) -> AutoscalingConfig:
    """Return bounds for our own policy, which has its own delays and needs metrics every second. (Serve 2.60 deprecates
    `metrics_interval_s` here, but with the environment variables that it names, metrics came every 10 s.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=minimum,
            max_replicas=maximum,
            upscale_delay_s=0,
            downscale_delay_s=0,
            metrics_interval_s=autoscale.PERIOD_SECONDS,
            look_back_period_s=5 * autoscale.PERIOD_SECONDS,
        )


def decode_deployment(pool: str) -> str:
    """Return the name of a decode pool's deployment in Serve."""
    return f"Decode-{pool}"


def _engine_options(section: EngineConfig, key: str) -> dict[str, object]:
    """Return the deployment options of a pool. Raises ConfigError if Serve refuses the section's autoscaling_config."""
    scale: dict[str, object] = {"num_replicas": section.replicas}
    if section.scale is not None:
        scale = {"autoscaling_config": _between(section.scale.min_replicas, section.scale.max_replicas)}
    if section.autoscaling_config is not None:
        unknown = (
            section.autoscaling_config.keys() - AutoscalingConfig.model_fields.keys()
        )  # Serve ignores unknown keys
        if unknown:
            raise ConfigError(f"{key}.autoscaling_config.{min(unknown)}: unknown key")
        try:
            scale = {"autoscaling_config": AutoscalingConfig(**section.autoscaling_config)}
        except (ValidationError, ValueError) as error:
            raise ConfigError(f"{key}.autoscaling_config: {error}") from None
    return {
        **scale,
        # The engine queues and refuses requests itself; the rest leaves room for statistics and health checks.
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

    Ray requires a token (kept under ~/.ray): its default for a new cluster, unless RAY_AUTH_MODE says otherwise. That
    variable has no effect after the import of ray, so it cannot be set here.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
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
    except (RuntimeError, OSError, RayError) as error:  # a TimeoutError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"Ray did not start: {reason} ({RAY_LOGS})") from error


@contextlib.contextmanager
def deployed(config: Config, name: str = APPLICATION, route_prefix: str = "/") -> Iterator[None]:
    """Run `config` as one more application of the running cluster; drain and delete it when the block ends.

    Serve registers gRPC endpoints only for an application that has a route prefix.
    """
    serve.run(build(config), name=name, route_prefix=route_prefix)
    try:
        wait_for_answer(name)
        yield
    finally:
        serve.delete(name)


def deploy_config(config: Config) -> dict[str, object]:
    """Return `config` as a Serve deploy config (ray.serve.schema.ServeDeploySchema). Raises ConfigError."""
    build(config)  # raises what Serve would refuse
    gateway = config.gateway
    policy = {"autoscaling_policy": _service_levels(config)} if config.scaled else {}
    return {
        "http_options": {"host": gateway.http_host, "port": gateway.http_port},
        "grpc_options": {"port": gateway.grpc_port, "grpc_servicer_functions": SERVICERS},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "cluster.serving.app:application",
                "args": config.model_dump(mode="json", exclude_unset=True),
                **policy,
            }
        ],
    }


def _service_levels(config: Config) -> dict[str, object]:
    """Return the application-level autoscaling policy for Serve, with its arguments."""
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


def submit(content: dict[str, object], progress: Callable[[str], None] = lambda _: None) -> None:
    """Deploy to the cluster that this process is connected to, and wait until everything runs.

    `progress` gets the states of the replicas whenever they change, and every PROGRESS_SECONDS. Raises ConfigError with
    Serve's reason.
    """
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(content))
    shown, began = ("", 0.0), time.monotonic()
    while True:
        status = serve.status().applications[APPLICATION]
        now = _states({name: deployment.replica_states for name, deployment in status.deployments.items()})
        seconds = time.monotonic() - began
        if now != shown[0] or seconds - shown[1] >= PROGRESS_SECONDS:
            progress(f"{seconds:3.0f} s: {now}")
            shown = now, seconds
        if status.status == "RUNNING":
            return
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [status.message, *(d.message for d in status.deployments.values())]
            raise ConfigError("Serve could not deploy this: " + "\n".join(reason for reason in reasons if reason))
        time.sleep(POLL_SECONDS)


def _states(deployments: dict[str, dict[str, int]]) -> str:
    """Describe the replicas of each deployment, or what Serve does before there are any deployments."""
    if not deployments:
        return "Serve imports and builds the application"
    replicas = {name: [f"{n} {state.lower()}" for state, n in states.items()] for name, states in deployments.items()}
    return ", ".join(f"{name} {'+'.join(states) or 'waiting'}" for name, states in sorted(replicas.items()))


@contextlib.contextmanager
def running(config: Config, progress: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Start a cluster on this machine that serves `config`, and stop it when the block ends."""
    content = deploy_config(config)
    try:
        start_cluster(config.gateway)
        submit(content, progress)
        try:
            wait_for_answer(APPLICATION)
            yield
        finally:
            serve.delete(APPLICATION)
            serve.shutdown()  # otherwise an HAProxy that is just starting would outlive Ray
    finally:
        ray.shutdown()
