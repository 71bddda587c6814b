"""What Serve's controller hands to the scaling policy, and what it gets back."""

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.serving.app import deploy_config
from cluster.serving.autoscale import ServiceLevels
from engine.config import Config
from engine.errors import ConfigError
from policy.load import Load, ReplicaLoad
from policy.scale import State, decide

RATES = {1: 100.0, 8: 30.0}
SCALE = {"min_replicas": 1, "max_replicas": 4}
CONTENT = {"prefill": {"scale": SCALE}, "decode": {"gpu": {"scale": SCALE}}, "targets": {"tokens_per_second": 60}}


@dataclass
class Context:
    """As much of Serve's AutoscalingContext as is asked for."""

    target_num_replicas: int
    raw_metrics: dict[str, dict[object, list[object]]] = field(default_factory=dict)


def context(target: int, *replicas: dict[str, float]) -> Context:
    metrics: dict[str, dict[object, list[object]]] = {}
    for number, said in enumerate(replicas):
        unique = Name(f"replica-{number}")
        for name, value in said.items():
            metrics.setdefault(name, {})[unique] = [SimpleNamespace(value=-77.0), SimpleNamespace(value=value)]
    return Context(target, metrics)


@dataclass(frozen=True)
class Name:
    unique_id: str

    @property
    def name(self) -> str:
        return self.unique_id


PREFILL, GPU, GATEWAY = Name("Prefill"), Name("Decode-gpu"), Name("Gateway")


def policy(tmp_path: Path | None = None) -> ServiceLevels:
    """As Serve makes it of the deploy config."""
    content = {**CONTENT, "targets": {**CONTENT["targets"], **({"record": str(tmp_path)} if tmp_path else {})}}
    (application,) = deploy_config(Config.parse(content))["applications"]
    return ServiceLevels(**json.loads(json.dumps(application["autoscaling_policy"]["policy_kwargs"])))


def contexts(users: float) -> dict[Name, Context]:
    decode = ReplicaLoad(running=users, max_requests=8, rates=RATES)
    prefill = ReplicaLoad(tokens_per_second=1000.0, min_step_seconds=0.01)
    front = {"ttft_seconds": 0.2, "user_rate": -1.0}
    return {
        PREFILL: context(1, prefill.metrics),
        GPU: context(1, decode.metrics),
        GATEWAY: context(2, front, {"ttft_seconds": -1.0, "user_rate": 65.0}),
    }


def test_more_users_than_a_replica_can_serve_at_the_target_add_a_replica() -> None:
    """60 tokens/s of each: at 5 requests there are exactly 60."""
    assert policy()(contexts(5))[0] == {PREFILL: 1, GPU: 1, GATEWAY: 2}
    assert policy()(contexts(6))[0] == {PREFILL: 1, GPU: 2, GATEWAY: 2}


def test_decisions_are_a_second_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("cluster.serving.autoscale.time.monotonic", lambda: now)
    levels = policy()
    assert levels(contexts(1))[0][GPU] == 1
    now += 0.9
    assert levels(contexts(6))[0][GPU] == 1
    now += 0.1
    assert levels(contexts(6))[0][GPU] == 2


def test_decisions_are_logged_and_recorded_to_be_replayed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="ray.serve"):
            levels = policy(tmp_path)
            levels(contexts(6))
    finally:
        logger.removeHandler(caplog.handler)

    assert "gpu: 1 -> 2 replicas; up: 6 requests, 5.0 a replica at the target" in caplog.text
    assert "gpu: expected with 2 replicas: 80.0 tokens/s of each user" in caplog.text
    (file,) = tmp_path.glob("scale-*.jsonl")
    (line,) = map(json.loads, file.read_text().splitlines())
    load = Load.from_json(line["load"])
    assert (load.front.ttft_seconds, load.front.user_rate) == (0.2, 65.0), "the worst of both gateways"
    decision, _ = decide(levels._targets, levels._bounds, load, State())
    assert dict(decision.replicas) == line["replicas"] == {"prefill": 1, "gpu": 2}


def test_replicas_without_metrics_change_no_replica_counts() -> None:
    nobody = {PREFILL: Context(1), GPU: Context(3), GATEWAY: Context(1)}

    assert policy()(nobody)[0] == {PREFILL: 1, GPU: 3, GATEWAY: 1}


def test_serve_accepts_and_calls_the_policy() -> None:
    content = deploy_config(Config.parse(CONTENT))

    schema = ServeDeploySchema.model_validate(content)

    assert schema.applications[0].autoscaling_policy["policy_function"] == "cluster.serving.autoscale:ServiceLevels"
    assert "autoscaling_policy" not in deploy_config(Config())["applications"][0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"prefill": {"scale": {"min_replicas": 3, "max_replicas": 2}}}, r"min_replicas 3 is more than max_replicas 2"),
        ({"prefill": {"scale": SCALE, "replicas": 2}}, r"replicas and scale contradict each other"),
        (
            {"prefill": {"scale": SCALE}, "decode": {"gpu": {"autoscaling_config": {"max_replicas": 2}}}},
            r"prefill\.scale and decode\.gpu\.autoscaling_config",
        ),
        (
            {"prefill": {"scale": {**SCALE, "devices": 4}}, "targets": {"devices": 3}},
            r"targets\.devices: 3, and min_replicas of all pools need 4",
        ),
    ],
)
def test_impossible_scaling_is_refused_by_name(content: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config.parse(content)


def test_metrics_hold_every_figure_of_a_replicas_load() -> None:
    load = ReplicaLoad(running=3, waiting=1, max_requests=8, rates=RATES, pages_used=0.5)

    assert ReplicaLoad.from_metrics(load.metrics) == load
    assert replace(load, running=0).users == 1
