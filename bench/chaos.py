"""Kills replicas under load: every answer must be complete and as without the kills, and nothing may leak.

Three replicas in each pool, with the shipped drafter. The same questions are asked twice: undisturbed, which is the
ceiling, and while a random replica of either pool is killed at intervals.
"""

import asyncio
import random
import time
from contextlib import suppress

import grpc

from bench.console import bar
from bench.shape import BenchReport
from bench.storm import Answer, Question, Replicas, ask_all, compare, leaks, questions
from cluster.client import Client
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.app import running
from cluster.serving.front import free_ports
from cluster.serving.proxy import APPLICATION
from engine.config import SHIPPED_DRAFTER, Config

REPLICAS, CONCURRENCY = 3, 64
RECOVERIES = 3  # the interval between kills, in times that a replica takes to come back
IDLE_SECONDS = 60.0


def run(report: BenchReport) -> None:
    quick = report.options.quick
    count, every = (60, 4.0) if quick else (2000, None)
    draw = random.Random(0)
    asked = questions(count, draw, (8, 32) if quick else (64, 256))
    grpc_port, http_port = free_ports(2)
    with running(config(grpc_port, http_port), print), Client(f"127.0.0.1:{grpc_port}") as client:
        replicas = Replicas(APPLICATION, draw)
        recovery = recovery_seconds(client, replicas)
        report.note(f"a killed replica was back after {recovery:.1f} s")
        before, seconds = answers(client, f"127.0.0.1:{grpc_port}", asked, "undisturbed")
        tokens = sum(len(answer.tokens) for answer in before)
        report.ceiling(f"output tok/s undisturbed, {CONCURRENCY} requests under way", tokens / seconds)
        interval = every or RECOVERIES * recovery
        after, disturbed = answers(client, f"127.0.0.1:{grpc_port}", asked, "killing", replicas, interval)
        found = settled(client)
    verdict = compare(asked, before, after)
    kills = len(replicas.killed) - 1
    report.note(
        f"{kills} kills, one every {interval:.0f} s; of pools: {[name.split('#')[1] for name in replicas.killed]}"
    )
    report.table(
        "chaos",
        [
            {"what": "undisturbed", "output_tok_s": tokens / seconds, "s": seconds, "sent round again": 0},
            {
                "what": f"{kills} replicas killed",
                "output_tok_s": sum(len(answer.tokens) for answer in after) / disturbed,
                "s": disturbed,
                "sent round again": verdict.resumed,
            },
        ],
    )
    for error in sorted(set(verdict.failed)):
        report.note(f"failed: {error}")
    for leak in found:
        report.note(f"leaked: {leak}")
    report.goal("requests that failed", len(verdict.failed), 0, "requests", at_most=True)
    report.goal("answers of another length", verdict.incomplete, 0, "answers", at_most=True)
    report.goal("answers with other tokens, ties left out", verdict.different, 0, "answers", at_most=True)
    report.goal("ties", 100 * verdict.ties / count, 0.1, "%", at_most=True)
    report.goal("pages or leases left", len(found), 0, "replicas", at_most=True)


def config(grpc_port: int, http_port: int) -> Config:
    engine = {"replicas": REPLICAS, "threads": 1, "cache_bytes": "64MiB"}
    return Config.parse(
        {
            "model": {"drafter": str(SHIPPED_DRAFTER)},
            "prefill": engine,
            "decode": {"default": {**engine, "planner": "fixed"}},
            "gateway": {"grpc_port": grpc_port, "http_port": http_port},
        }
    )


def recovery_seconds(client: Client, replicas: Replicas) -> float:
    """Kill a replica; return the seconds until all replicas answer again."""
    agents = {replica.identity.agent for replica in whole(client).replicas}
    began = time.monotonic()
    replicas.kill_one()
    while True:
        if len(agents & {replica.identity.agent for replica in whole(client).replicas}) == 2 * REPLICAS - 1:
            return time.monotonic() - began


def whole(client: Client) -> pb.Stats:
    """Wait until all replicas run, and return their statistics."""
    until = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < until:
        with suppress(grpc.RpcError):
            if len((stats := client.stats()).replicas) == 2 * REPLICAS:
                return stats
        time.sleep(0.1)
    raise RuntimeError(f"fewer than {2 * REPLICAS} replicas after {IDLE_SECONDS} s")


def answers(
    client: Client,
    address: str,
    asked: list[Question],
    what: str,
    replicas: Replicas | None = None,
    interval: float = 0.0,
) -> tuple[list[Answer], float]:
    """Return all answers and the seconds they took. With `replicas`, kill one at every interval meanwhile."""
    whole(client)

    async def storm() -> list[Answer]:
        with bar(what, len(asked)) as progress:
            killing = asyncio.create_task(kill(replicas, interval)) if replicas else None
            try:
                return await ask_all(address, APPLICATION, asked, CONCURRENCY, lambda _: progress.advance())
            finally:
                if killing:
                    killing.cancel()

    began = time.monotonic()
    found = asyncio.run(storm())
    return found, time.monotonic() - began


async def kill(replicas: Replicas, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        name = await asyncio.to_thread(replicas.kill_one)
        print(f"killed {name}", flush=True)


def settled(client: Client) -> list[str]:
    """Wait until the service holds nothing, or IDLE_SECONDS; return what it still holds."""
    until = time.monotonic() + IDLE_SECONDS
    while (found := leaks(whole(client))) and time.monotonic() < until:
        time.sleep(0.2)
    return found
