"""Starting a cluster: what the user is told while it starts, and if Ray does not start. Nothing is started here."""

import pytest
import ray

from cluster.serving import app
from cluster.serving.front import free_ports
from engine.config import Config
from engine.errors import ConfigError


@pytest.mark.parametrize("error", [RuntimeError("the GCS\ndid not answer"), TimeoutError("the GCS did not answer")])
def test_ray_that_does_not_start_is_one_line_that_names_the_logs(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    grpc_port, http_port = free_ports(2)
    gateway = Config.parse({"gateway": {"grpc_port": grpc_port, "http_port": http_port, "front": "proxy"}}).gateway
    with pytest.raises(ConfigError, match=r"^Ray did not start: the GCS did not answer .*raylet.out.*$"):
        app.start_cluster(gateway)


def test_progress_says_what_is_waited_for() -> None:
    assert app._states({}) == "Serve imports and builds the application"
    states = {"Prefill": {"STARTING": 1, "RUNNING": 2}, "Gateway": {}}
    assert app._states(states) == "Gateway waiting, Prefill 1 starting+2 running"
