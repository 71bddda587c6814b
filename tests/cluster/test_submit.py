"""A configuration as a Serve deploy config: what is printed, and what a running cluster makes of it over REST."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.client import Client, generate_request
from cluster.serving.app import application, build, deploy_config
from cluster.serving.front import free_ports
from engine.config import Config
from engine.errors import ConfigError
from tests.cluster.test_cli import ROOT, sparkpool, wait_for

CONFIG = """
prefill: {cache_bytes: 16MiB, threads: 1}
decode:
  steady: {cache_bytes: 16MiB, threads: 1}
  elastic: {cache_bytes: 16MiB, threads: 1, autoscaling_config: {min_replicas: 1, max_replicas: 2}}
"""


def written(folder: Path, ports: tuple[int, int]) -> Path:
    file = folder / "service.yaml"
    file.write_text(CONFIG + f"gateway: {{grpc_port: {ports[0]}, http_port: {ports[1]}}}\n")
    return file


def test_the_shown_deploy_config_is_accepted_by_serve_deploy(tmp_path: Path) -> None:
    shown = sparkpool("serve", str(written(tmp_path, (9001, 9002))), "--show")

    assert shown.returncode == 0, shown.stderr
    assert "# RAY_SERVE_ENABLE_HA_PROXY=1\n" in shown.stdout, "what the cluster has to be started with"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(shown.stdout))
    (app,) = schema.applications
    assert (app.import_path, schema.grpc_options.port) == ("cluster.serving.app:application", 9001)
    assert application(app.args)._bound_deployment.name == "Gateway"
    assert Config.parse(app.args) == Config.load(tmp_path / "service.yaml")


def test_without_a_model_path_each_node_uses_its_own_shipped_model(tmp_path: Path) -> None:
    (app,) = deploy_config(Config.load(written(tmp_path, (9001, 9002))))["applications"]

    assert app["args"].get("model", {}) == {}


def test_replicas_take_the_resources_of_their_section() -> None:
    decode = {"fast": {"resources": {"decode": 0.5}}, "slow": {}}

    deployments = deploy_options(Config.parse({"prefill": {"resources": {"prefill": 1}}, "decode": decode}))

    assert deployments["Prefill"]["resources"] == {"prefill": 1}
    assert deployments["Decode-fast"]["resources"] == {"decode": 0.5}
    assert deployments["Decode-slow"]["resources"] == {}


def deploy_options(config: Config) -> dict[str, dict[str, Any]]:
    """What Ray is asked for, for a replica of each pool."""
    gateway = build(config)._bound_deployment
    _, prefill, decode = gateway.init_args
    bound = [one._bound_deployment for one in (prefill, *decode.values())]
    return {one.name: one.ray_actor_options for one in bound}


@pytest.mark.parametrize("scale", [{"max_replicas": 0}, {"max_replica": 3}, {"min_replicas": 3, "max_replicas": 2}])
def test_what_serve_would_refuse_names_its_key(scale: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"decode\.gpu\.autoscaling_config[.:]"):
        deploy_config(Config.parse({"decode": {"gpu": {"autoscaling_config": scale}}}))


def test_no_cluster_to_submit_to_is_one_line(tmp_path: Path) -> None:
    done = sparkpool("serve", str(written(tmp_path, (9001, 9002))), "--submit", "http://127.0.0.1:1")

    assert done.returncode == 1
    assert done.stderr.startswith("sparkpool: http://127.0.0.1:1: ")
    assert "Traceback" not in done.stderr


def test_a_running_cluster_accepts_a_submitted_configuration_and_requests_may_name_pools(tmp_path: Path) -> None:
    gcs, dashboard, agent, client_server, *ports = free_ports(6)
    config = written(tmp_path, (ports[0], ports[1]))
    with (
        ray_head(gcs, dashboard, agent, client_server, tmp_path / "ray.log"),
        Client(f"127.0.0.1:{ports[0]}") as client,
    ):
        submitted = sparkpool("serve", str(config), "--submit", f"http://127.0.0.1:{dashboard}")
        assert submitted.returncode == 0, submitted.stderr
        wait_for(lambda: pools_of(client) == ["elastic", "prefill", "steady"], seconds=120)

        for pool in ("elastic", ""):
            request = generate_request("import os", temperature=0.0, max_tokens=4, decode_pool=pool)
            assert len(list(client.generate(request))[-1].text) > 0

        tokens = {replica.identity.pool: replica.counters.tokens for replica in client.stats().replicas}
        assert (tokens["elastic"], tokens["steady"]) == (4, 4)


def pools_of(client: Client) -> list[str]:
    """The pools that answer now."""
    with contextlib.suppress(grpc.RpcError):
        return sorted(replica.identity.pool for replica in client.stats().replicas)
    return []


@contextlib.contextmanager
def ray_head(gcs: int, dashboard: int, agent: int, client_server: int, log: Path) -> Iterator[None]:
    """A Ray node of its own, as an operator starts one, on loopback and away from the other tests' ports."""
    ray = str(Path(sys.executable).parent / "ray")
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client_server,
        "min-worker-port": 21000,
        "max-worker-port": 21999,
    }
    command = [ray, "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("w") as output:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        head = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
    try:
        wait_for(lambda: answers_http(dashboard) or head.poll() is not None, seconds=60)
        assert head.poll() is None, log.read_text()
        yield
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def answers_http(port: int) -> bool:
    """Whether Serve's REST interface answers on the dashboard's port."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/serve/applications/", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        time.sleep(0.5)
        return False
