"""Redeploys and scales a service under load: no request may fail, and the decision to scale up must come in time.

First every replica of all pools and the gateway is replaced by one of another version while requests run.
Then, with one to three replicas in both pools, the load rises twice from 2 concurrent requests and falls again: by 24
with long answers, which is more than one decode replica can serve at the target, and by 8 with long prompts, which is
more than one prefill replica can. The time to a decision counts from the beginning of the burst.
"""

import asyncio
import random
import time
from collections.abc import Callable
from itertools import cycle, islice
from threading import Event, Thread
from typing import Any

from ray import serve

from bench.shape import BenchReport
from bench.storm import Answer, Question, ask_all, questions
from cluster.serving.app import PREFILL, decode_deployment, deploy_config, running, submit
from cluster.serving.front import free_ports
from cluster.serving.proxy import APPLICATION
from engine.config import Config

MOST, LOW = 3, 2
ANSWERS, PROMPTS = ((32, 128), (20, 92)), ((2, 8), (1500, 2500))  # tokens of answers and prompts
BURSTS = {"decode": (24, ANSWERS), "prefill": (8, PROMPTS)}  # additional requests, by the pool that they overload
DECISION_SECONDS = 5.0
DEPLOYMENTS = {"prefill": PREFILL, "decode": decode_deployment("default")}


def run(report: BenchReport) -> None:
    quick = report.options.quick
    grpc_port, http_port = free_ports(2)
    address = f"127.0.0.1:{grpc_port}"
    draw = random.Random(0)
    with running(config(grpc_port, http_port, version=1), print):
        load = Background(address, 16, questions(400, draw, *ANSWERS))
        time.sleep(2 if quick else 10)
        report.ceiling("answers per second before the redeploy, 16 under way", load.ended / (2 if quick else 10))
        began = time.monotonic()
        submit(deploy_config(config(grpc_port, http_port, version=2)), print)
        redeployed = time.monotonic() - began
        time.sleep(2 if quick else 10)
        rolled = load.stop()
    report.table("redeploy", [{"requests": len(rolled), "failed": failures(rolled), "redeploy s": redeployed}])
    with running(config(grpc_port, http_port, version=1, down_seconds=3 if quick else 15), print):
        watch = Watch()
        quiet = Background(address, LOW, questions(400, draw, *ANSWERS))
        time.sleep(2 if quick else 20)
        served, rows = [], []
        for pool, (more, lengths) in BURSTS.items():
            began = time.monotonic()
            burst = Background(address, more, questions(400, draw, *lengths))
            time.sleep(20 if quick else 60)
            served += burst.stop()
            rows.append(watch.row(pool, began, calm=watch.calm(30 if quick else 180)))
        served += quiet.stop()
        watch.stop()
    report.table("scaling", rows)
    report.note(f"{len(served)} requests while scaling")
    for error in sorted({answer.error for answer in (*rolled, *served) if answer.error}):
        report.note(f"failed: {error}")
    report.goal("failed requests, rolling redeploy", failures(rolled), 0, "requests", at_most=True)
    report.goal("failed requests, scaled up and down", failures(served), 0, "requests", at_most=True)
    for row in rows:
        report.goal(f"{row['pool']}: burst to decision", row["decision s"], DECISION_SECONDS, "s", at_most=True)
        report.goal(f"{row['pool']}: replicas at the peak", row["most replicas"], MOST, "replicas")
        report.goal(f"{row['pool']}: replicas at the end", row["replicas at the end"], 1, "replicas", at_most=True)


def config(grpc_port: int, http_port: int, version: int, down_seconds: float | None = None) -> Config:
    """Return the configuration. Another `version` changes a limit that is never reached: Serve then replaces all
    replicas."""
    engine: dict[str, object] = {
        "threads": 1,
        "cache_bytes": "64MiB",
        "max_waiting": 1000 + version,
        "surge_percent": 100,
    }
    fixed, scaled = {"replicas": 2}, {"scale": {"min_replicas": 1, "max_replicas": MOST}}
    engine |= fixed if down_seconds is None else scaled
    targets = {"ttft_seconds": 0.05, "tokens_per_second": 150.0, "down_seconds": down_seconds or 60}
    return Config.parse(
        {
            "prefill": {**engine, "chunk_tokens": 64},
            "decode": {"default": engine},
            "gateway": {"grpc_port": grpc_port, "http_port": http_port},
            "targets": targets,
        }
    )


def failures(answers: list[Answer]) -> int:
    """Count the answers that ended with an error or without a token."""
    return sum(bool(answer.error) or not answer.tokens for answer in answers)


class Background:
    """Keeps `concurrency` requests running until it is stopped."""

    def __init__(self, address: str, concurrency: int, asked: list[Question]) -> None:
        self._stop = Event()
        self._answers: list[Answer] = []
        self._asked = cycle(asked)
        self._thread = Thread(target=self._run, args=(address, concurrency), daemon=True)
        self._thread.start()

    @property
    def ended(self) -> int:
        """How many answers have ended so far."""
        return len(self._answers)

    def stop(self) -> list[Answer]:
        """Stop sending; return all answers when the open ones have ended."""
        self._stop.set()
        self._thread.join()
        return self._answers

    def _run(self, address: str, concurrency: int) -> None:
        while not self._stop.is_set():
            asyncio.run(ask_all(address, APPLICATION, [*islice(self._asked, 4 * concurrency)], concurrency, self._end))

    def _end(self, answer: Answer) -> None:
        self._answers.append(answer)


class Watch:
    """Records ten times a second how many replicas each pool has: running, starting and updating ones."""

    def __init__(self, count: Callable[[], dict[str, int]] | None = None) -> None:
        self._count = count or replicas
        self._stop = Event()
        self.history: list[tuple[float, dict[str, int]]] = []
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self) -> dict[str, int]:
        return self.history[-1][1] if self.history else {}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def calm(self, max_seconds: float) -> float:
        """Wait until all pools have one replica, or `max_seconds`. Return the seconds waited."""
        began = time.monotonic()
        while time.monotonic() < began + max_seconds and set(self.now().values()) != {1}:
            time.sleep(0.5)
        return time.monotonic() - began

    def row(self, pool: str, since: float, calm: float) -> dict[str, Any]:
        """Return a row: seconds from the burst to the pool's second replica, its maximum and final number of replicas,
        and the seconds after the burst until all pools had one."""
        after = [(at - since, counts[pool]) for at, counts in self.history if at >= since]
        decided = next((seconds for seconds, count in after if count > 1), float("inf"))
        most, last = max(count for _, count in after), after[-1][1]
        row = {"pool": pool, "decision s": decided, "most replicas": most, "replicas at the end": last}
        return {**row, "s until all have one": calm}

    def _run(self) -> None:
        while not self._stop.is_set():
            self.history.append((time.monotonic(), self._count()))
            time.sleep(0.1)


def replicas() -> dict[str, int]:
    """Return the number of replicas that run or start, by pool, without those that are being stopped."""
    found = serve.status().applications[APPLICATION].deployments
    return {
        pool: sum(count for state, count in found[name].replica_states.items() if str(state).upper() != "STOPPING")
        for pool, name in DEPLOYMENTS.items()
    }
