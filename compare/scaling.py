"""Autoscaling in virtual time: policy/scale.py, as cluster/serving/autoscale.py applies it."""

from functools import partial
from typing import TYPE_CHECKING

from local.policies import initial_replicas, scaling_bounds, scaling_targets
from policy.board import PREFILL
from policy.load import Load, ReplicaLoad
from policy.scale import State, decide

if TYPE_CHECKING:
    from compare.simulated_gateway import SimulatedGateway

SCALE_SECONDS = 1.0  # the period of cluster/serving/autoscale.py


class SimulatedAutoscaler:
    """Decides once a second. A new replica is ready `System.start_seconds` later; one too many drains."""

    def __init__(self, front: "SimulatedGateway") -> None:
        self._front = front
        config = front.system.config
        self._percentile = config.targets.ttft_percentile
        self._targets, self._bounds = scaling_targets(config), scaling_bounds(config)
        self._wanted = initial_replicas(config)
        self._state = State()
        self.history: list[tuple[float, dict[str, int]]] = []

    def tick(self) -> None:
        decision, self._state = decide(self._targets, self._bounds, self._load(), self._state)
        if dict(decision.replicas) != self._wanted:
            self.history.append((self._front.now, dict(decision.replicas)))
        for pool, wanted in decision.replicas.items():
            for _ in range(wanted - self._wanted[pool]):
                moment = self._front.now + self._front.system.start_seconds
                self._front.timeline.at(moment, partial(self._front.start, pool))
            for _ in range(self._wanted[pool] - wanted):
                self._front.stop(min(self._front.replicas(pool), key=lambda one: one.stats().running))
        self._wanted = dict(decision.replicas)
        if not self._front.finished:
            self._front.timeline.at(self._front.now + SCALE_SECONDS, self.tick)

    def _load(self) -> Load:
        return Load(
            now=self._front.now,
            replicas=self._wanted,
            prefill=self._loads(PREFILL),
            decode={pool: self._loads(pool) for pool in self._wanted if pool != PREFILL},
            front=self._front.load(self._percentile),
        )

    def _loads(self, pool: str) -> dict[str, ReplicaLoad]:
        return {replica.name: ReplicaLoad.of(replica.stats()) for replica in self._front.replicas(pool)}
