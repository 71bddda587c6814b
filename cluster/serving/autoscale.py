"""The application-level autoscaling policy of Serve: applies the decisions of policy/scale.py.

Serve's controller creates one for the application and calls it about ten times a second. Replicas and gateways push
their load once a second (record_autoscaling_stats). Every decision is logged with its prediction, and later with the
measured outcome.
"""

import json
import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO, TypedDict, TypeVar

from policy.load import FrontLoad, Load, ReplicaLoad
from policy.scale import PREFILL, Bounds, Decision, Outcome, Prediction, State, Targets, decide

PATH = "cluster.serving.autoscale:ServiceLevels"
PERIOD_SECONDS = 1.0
logger = logging.getLogger("ray.serve")


class BoundsArgs(TypedDict, total=False):
    """`Bounds` as JSON."""

    min_replicas: int
    max_replicas: int
    devices: float
    watts: float


class DeploymentId(Hashable, Protocol):
    """Serve's id of a deployment."""

    @property
    def name(self) -> str: ...


class ReplicaId(Hashable, Protocol):
    """Serve's id of a replica."""

    @property
    def unique_id(self) -> str: ...


class MetricSample(Protocol):
    """One value of a metric that a replica pushed."""

    @property
    def value(self) -> float: ...


RawMetrics = Mapping[str, Mapping[ReplicaId, Sequence[MetricSample]]]
"""The samples of each metric and replica, oldest first."""


class ScalingContext(Protocol):
    """Describes one deployment to the policy, as Serve passes it."""

    @property
    def target_num_replicas(self) -> int: ...
    @property
    def raw_metrics(self) -> RawMetrics: ...


D = TypeVar("D", bound=DeploymentId)


class ServiceLevels:
    """Scales all pools of one application to meet its targets.

    `pools`: the pool of each deployment, without the gateway; `bounds`: the bounds of each scaled pool; `record`: a
    folder to write loads and decisions to.
    """

    def __init__(
        self,
        targets: Mapping[str, float],
        bounds: Mapping[str, BoundsArgs],
        pools: Mapping[str, str],
        gateway: str,
        record: str | None = None,
    ) -> None:
        self._targets = Targets(**targets)
        self._bounds = {pool: Bounds(**bound) for pool, bound in bounds.items()}
        self._pools = pools
        self._gateway = gateway
        self._state = State()
        self._decided = float("-inf")
        self._file = _opened(Path(record)) if record else None

    def __call__(self, contexts: Mapping[D, ScalingContext]) -> tuple[dict[D, int], dict[D, dict[str, object]]]:
        """Return the number of replicas of each deployment id, and no state for Serve to keep: it is kept here."""
        wanted = {deployment: context.target_num_replicas for deployment, context in contexts.items()}
        now = time.monotonic()
        if now - self._decided < PERIOD_SECONDS:
            return wanted, {}
        self._decided = now
        load = self._load(contexts, now)
        decision, self._state = decide(self._targets, self._bounds, load, self._state)
        self._log(load, decision)
        for deployment in contexts:
            pool = self._pools.get(deployment.name)
            wanted[deployment] = decision.replicas.get(pool, wanted[deployment]) if pool else wanted[deployment]
        return wanted, {}

    def _load(self, contexts: Mapping[D, ScalingContext], now: float) -> Load:
        by_pool = {self._pools[d.name]: context for d, context in contexts.items() if d.name in self._pools}
        loads = {
            pool: {name: ReplicaLoad.from_metrics(metrics) for name, metrics in _latest(context.raw_metrics).items()}
            for pool, context in by_pool.items()
        }
        front = [_latest(context.raw_metrics) for d, context in contexts.items() if d.name == self._gateway]
        return Load(
            now=now,
            replicas={pool: context.target_num_replicas for pool, context in by_pool.items()},
            prefill=loads.pop(PREFILL, {}),
            decode=loads,
            front=_front([metrics for gateways in front for metrics in gateways.values()]),
        )

    def _log(self, load: Load, decision: Decision) -> None:
        for pool, wanted in decision.replicas.items():
            if wanted != load.replicas[pool]:
                logger.info(f"{pool}: {load.replicas[pool]} -> {wanted} replicas; {decision.reasons[pool]}")
        for prediction in decision.predictions:
            logger.info(f"{prediction.pool}: expected with {prediction.replicas} replicas: {_figure(prediction)}")
        for outcome in decision.outcomes:
            logger.info(f"{outcome.prediction.pool}: {_comparison(outcome)}")
        if self._file is not None:
            line = {
                "load": load.as_json(),
                "replicas": dict(decision.replicas),
                "reasons": dict(decision.reasons),
                "outcomes": [_comparison(outcome) for outcome in decision.outcomes],
            }
            self._file.write(json.dumps(line) + "\n")


def _latest(metrics: RawMetrics) -> dict[str, dict[str, float]]:
    """Return the latest value of each metric, by the unique id of its replica."""
    latest: dict[str, dict[str, float]] = {}
    for name, by_replica in metrics.items():
        for replica, series in by_replica.items():
            if series:
                latest.setdefault(replica.unique_id, {})[name] = series[-1].value
    return latest


def _front(gateways: list[dict[str, float]]) -> FrontLoad:
    """Return the worst latencies of all gateways; -1 in a metric stands for None."""
    first = [one["ttft_seconds"] for one in gateways if one.get("ttft_seconds", -1.0) >= 0]
    rates = [one["user_rate"] for one in gateways if one.get("user_rate", -1.0) >= 0]
    return FrontLoad(ttft_seconds=max(first, default=None), user_rate=min(rates, default=None))


def _figure(prediction: Prediction) -> str:
    if prediction.pool == PREFILL:
        return f"{prediction.value:.3f} s to the first token"
    return f"{prediction.value:.1f} tokens/s of each user"


def _comparison(outcome: Outcome) -> str:
    measured = "no request was served" if outcome.measured is None else f"{outcome.measured:.3f} was measured"
    return f"with {outcome.prediction.replicas} replicas, {_figure(outcome.prediction)} was expected, {measured}"


def _opened(folder: Path) -> TextIO:
    """Open a new file in the folder. Raises OSError: Serve then reports the error and deploys nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"scale-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    return (folder / name).open("a", buffering=1)
