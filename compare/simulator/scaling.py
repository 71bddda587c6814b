"""Scaling in virtual time: policy/scale.py, as cluster/autoscale.py applies it."""

from functools import partial
from typing import TYPE_CHECKING

from policy.board import PREFILL
from policy.load import FrontLoad, Load, ReplicaLoad
from policy.scale import Bounds, State, Targets, decide

if TYPE_CHECKING:
    from compare.simulator.simulated_gateway import SimulatedGateway

SCALE_SECONDS = 1.0  # as often as cluster/autoscale.py decides


class Scale:
    """Decides once a second. A replica that is wanted is there after a while; one that is not drains."""

    def __init__(self, front: "SimulatedGateway") -> None:
        self._front = front
        config = front.system.config
        targets = config.targets
        self._percentile = targets.ttft_percentile
        self._targets = Targets(
            ttft_seconds=targets.ttft_seconds,
            tokens_per_second=targets.tokens_per_second,
            devices=targets.devices,
            watts=targets.watts,
            down_seconds=targets.down_seconds,
        )
        scales = {key.removeprefix("decode."): section.scale for key, section in config.sections.items()}
        self._bounds = {
            pool: Bounds(least=s.min_replicas, most=s.max_replicas, devices=s.devices, watts=s.watts)
            for pool, s in scales.items()
            if s is not None
        }
        self._wanted = {
            key.removeprefix("decode."): section.scale.min_replicas if section.scale else section.replicas
            for key, section in config.sections.items()
        }
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
        recent = self._front.recent()
        ttft = sorted(one.ttft for one in recent)
        rates = sorted(1 / one.tpot for one in recent if one.tokens > 1 and one.tpot > 0)
        return Load(
            now=self._front.now,
            replicas=self._wanted,
            prefill=self._loads(PREFILL),
            decode={pool: self._loads(pool) for pool in self._wanted if pool != PREFILL},
            front=FrontLoad(
                ttft_seconds=ttft[int(len(ttft) * self._percentile / 100)] if ttft else None,
                user_rate=rates[len(rates) // 20] if rates else None,
            ),
        )

    def _loads(self, pool: str) -> dict[str, ReplicaLoad]:
        return {replica.name: ReplicaLoad.of(replica.stats()) for replica in self._front.replicas(pool)}
