"""Measures the cost of the front: gRPC, HAProxy or proxy, gateway and Ray between the engines and a client.

On this machine, in turns, with the same prompts, threads and pages, 16 concurrent requests:

    engines        a prefill and a decode engine in two processes of their own, joined by NIXL, without any front
    gRPC           a cluster of one replica each, under `sparkpool bench`, through HAProxy
    gRPC, 4        the same cluster's second decode pool, which sends a message for every 4 tokens (`stream_interval`)
    gRPC, direct   as gRPC, but at the gateway's own port (`front: direct`)
    gRPC, proxy    as gRPC, but through Serve's proxy (`front: proxy`), which such a cluster has too

Then the four without load, one request at a time. The bare engines are two processes rather than one `local.Pair`,
because the cluster's engines also run at the same time, and they have the niceness of Ray's workers, so that the
operating system schedules them alike. They are the ceiling.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch

from bench.shape import BenchReport
from cluster.loadgen.workload import Lengths, random_jobs
from cluster.serving.app import running
from cluster.serving.front import free_ports, gateway_addresses
from cluster.serving.proxy import APPLICATION
from decode.decoder import Decoder
from engine.config import Config
from engine.text import Text
from engine.transfer import NixlTransfer, new_agent_name
from engine.types import Chunk, Handoff, Request, Sampling, StopRules
from local.build import Builder, set_threads
from prefill.prefiller import Prefiller

CONCURRENCY = 16
LENGTHS = Lengths(input=64, output=128)
INTERVAL = 4
ROUNDS, REQUESTS = 7, 64
ROUNDS_ALONE, REQUESTS_ALONE = 4, 16
RAY_WORKER_NICENESS = 15
SHARE_TARGET = 0.85
BURST_SECONDS, BURST_TARGET = 0.001, 0.05
ENGINE = {"threads": 1, "cache_bytes": "64MiB"}
PROCESSES = {
    "HAProxy": "haproxy -db",
    "proxy": "ray::ProxyActor",
    "gateway": ":Gateway",
    "prefill": ":Prefill",
    "decode": ":Decode-",
}
BARE, EACH, COARSE, DIRECT, PROXY = "engines", "gRPC", f"gRPC, {INTERVAL}", "gRPC, direct", "gRPC, proxy"


def run(report: BenchReport) -> None:
    """Alternate the five, and report the processor time of all but the first."""
    grpc_port, http_port, proxy_port = free_ports(3)
    os.environ["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = str(proxy_port)
    config = Config.parse(
        {
            "prefill": ENGINE,
            "decode": {"default": ENGINE, "coarse": {**ENGINE, "stream_interval": INTERVAL}},
            "gateway": {"grpc_port": grpc_port, "http_port": http_port},
        }
    )
    tokens = REQUESTS * LENGTHS.output
    with running(config), Engines(config) as engines:
        haproxy, proxy = f"127.0.0.1:{grpc_port}", f"127.0.0.1:{proxy_port}"
        (direct,) = gateway_addresses(APPLICATION)
        ways = {EACH: (haproxy, "default"), COARSE: (haproxy, "coarse")}
        ways |= {DIRECT: (direct, "default"), PROXY: (proxy, "default")}
        served = {name: Served(*way, CONCURRENCY) for name, way in ways.items()}
        alone = {name: Served(*way, 1) for name, way in ways.items()}
        rate = tokens / engines.seconds(REQUESTS)
        report.ceiling(f"output tok/s of both engines alone, {CONCURRENCY} requests under way (one round)", rate)
        sides: dict[str, Callable[[int], float]] = {BARE: engines.seconds}
        sides |= {name: side.seconds for name, side in served.items()}
        samples = report.alternately("rounds", sides, [REQUESTS] * ROUNDS)
        one_by_one = {name: side.seconds for name, side in alone.items()}
        report.alternately("without load", one_by_one, [REQUESTS_ALONE] * ROUNDS_ALONE)
    report.table("output", [{"what": name, "output_tok_s": tokens / samples.median(name)} for name in sides])
    report.table("latency", [latency(name, served[name], alone[name]) for name in served])
    for name, side in served.items():
        report.table(f"{name}: processor time", side.processor_time())
    for name in (EACH, COARSE):
        share = samples.speed_up(name, over=BARE)
        what = f"output tok/s over {name}, {CONCURRENCY} streams, of the engines' alone"
        report.goal(what, 100 * share, 100 * SHARE_TARGET, "%")
    burst = statistics.median(round_.burst_share for round_ in served[EACH].counted)
    what = "messages within 1 ms of the one before, with which they could have gone"
    report.goal(what, 100 * burst, 100 * BURST_TARGET, "%", at_most=True)


def latency(name: str, served: "Served", alone: "Served") -> dict[str, Any]:
    """Return a row of milliseconds, medians over the rounds. "On the way" is the time between client and gateway: the
    client's duration of an answer less the gateway's."""

    def median(side: Served, figure: str) -> float:
        values: list[float] = [getattr(round_, figure) for round_ in side.counted]
        return 1e3 * statistics.median(values)

    return {
        "what": name,
        "TTFT without load": median(alone, "ttft_seconds"),
        "on the way without load": median(alone, "way_seconds"),
        f"TTFT, {CONCURRENCY} streams": median(served, "ttft_seconds"),
        f"on the way, {CONCURRENCY} streams": median(served, "way_seconds"),
    }


@dataclass(frozen=True, kw_only=True)
class FrontRound:
    """One run through gRPC. `cpu_seconds` is user and system time by process."""

    seconds: float
    tokens: int
    messages: int
    burst_share: float
    ttft_seconds: float
    way_seconds: float
    cpu_seconds: dict[str, float]


class Served:
    """A decode pool of the service at an address, and the processes that Ray runs for the service below this one."""

    def __init__(self, address: str, pool: str, concurrency: int) -> None:
        self._address = address
        self._pool = pool
        self._concurrency = concurrency
        below = [(process, " ".join(process.cmdline())) for process in psutil.Process().children(recursive=True)]
        self._processes = {name: [p for p, line in below if mark in line] for name, mark in PROCESSES.items()}
        self.rounds: list[FrontRound] = []

    def seconds(self, num_requests: int) -> float:
        """Return the seconds that `num_requests` take, from the first sent to the last end."""
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            words = ["--address", self._address, "--decode-pool", self._pool, "--json", file.name]
            words += ["--concurrency", str(self._concurrency), "--requests", str(num_requests)]
            words += ["--input-tokens", str(LENGTHS.input), "--output-tokens", str(LENGTHS.output)]
            before = self._cpu_seconds()
            subprocess.run([sys.executable, "-m", "cluster.cli", "bench", *words], check=True, capture_output=True)
            spent = {name: seconds - before[name] for name, seconds in self._cpu_seconds().items()}
            found = json.loads(Path(file.name).read_text())
        summary = found["summary"]
        assert summary["completed"] == num_requests, summary["failed"]
        gaps = [after - at for r in found["requests"] for (at, _), (after, _) in pairwise(r["messages"])]
        self.rounds.append(
            FrontRound(
                seconds=summary["seconds"],
                tokens=summary["output_tokens"],
                messages=summary["messages"],
                burst_share=sum(gap < BURST_SECONDS for gap in gaps) / len(gaps),
                ttft_seconds=summary["latency"]["ttft"]["p50"],
                way_seconds=statistics.median(
                    r["messages"][-1][0] - r["sent"] - r["timings"]["total_seconds"] for r in found["requests"]
                ),
                cpu_seconds={**spent, "client": summary["client_cpu_seconds"]},
            )
        )
        return self.rounds[-1].seconds

    @property
    def counted(self) -> list[FrontRound]:
        """The rounds without the warm-up."""
        return self.rounds[1:]

    def processor_time(self) -> list[dict[str, Any]]:
        """Return the median processor time over the rounds, by process."""
        return [
            {
                "process": name,
                "ms per message": statistics.median(1e3 * r.cpu_seconds[name] / r.messages for r in self.counted),
                "s per 1,000 tokens": statistics.median(1e3 * r.cpu_seconds[name] / r.tokens for r in self.counted),
            }
            for name in (*PROCESSES, "client")
        ]

    def _cpu_seconds(self) -> dict[str, float]:
        times = {name: [process.cpu_times() for process in found] for name, found in self._processes.items()}
        return {name: sum(t.user + t.system for t in found) for name, found in times.items()}


class Engines:
    """Two engines in two processes; handoffs go through a pipe, pages over NIXL."""

    def __init__(self, config: Config) -> None:
        spawn = multiprocessing.get_context("spawn")
        requests, handoffs = spawn.Pipe()
        self._orders, orders = spawn.Pipe()
        self._processes = [
            spawn.Process(target=prefill_process, args=(config, requests), daemon=True),
            spawn.Process(target=decode_process, args=(config, handoffs, orders), daemon=True),
        ]

    def __enter__(self) -> "Engines":
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.send(0)
        for process in self._processes:
            process.join()

    def seconds(self, num_requests: int) -> float:
        """Return the seconds that `num_requests` take."""
        self._orders.send(num_requests)
        seconds: float = self._orders.recv()
        return seconds


def prefill_process(config: Config, requests: Connection) -> None:
    """Prefill the requests that come through the pipe, until None comes."""
    os.nice(RAY_WORKER_NICENESS)
    set_threads(config.prefill, config)
    with torch.inference_mode():
        builder = Builder(config, config.prefill)
        prefiller = builder.prefiller(new_agent_name("prefill"), NixlTransfer)
        prefiller.warm_up()
        while True:
            while requests.poll(seconds_until(prefiller)):
                request = requests.recv()
                if request is None:
                    return
                prefiller.add(request)
            for event in prefiller.step():
                if isinstance(event, Handoff):
                    requests.send(event)


def decode_process(config: Config, handoffs: Connection, orders: Connection) -> None:
    """Run each ordered number of requests, CONCURRENCY at a time, and send back the seconds."""
    os.nice(RAY_WORKER_NICENESS)
    section = config.decode["default"]
    set_threads(section, config)
    with torch.inference_mode():
        builder = Builder(config, section)
        decoder = builder.decoder(new_agent_name("decode"), NixlTransfer, Text.load(config.model.path))
        decoder.warm_up()
        while num_requests := orders.recv():
            requests = workload(builder, num_requests)
            started = time.perf_counter()
            tokens = decode_all(decoder, requests, handoffs)
            orders.send(time.perf_counter() - started)
            assert tokens == num_requests * LENGTHS.output
        handoffs.send(None)


def decode_all(decoder: Decoder, requests: dict[str, Request], handoffs: Connection) -> int:
    """Decode all requests, and return the number of tokens."""
    waiting = iter(requests.values())
    tokens = finished = 0
    for _ in range(CONCURRENCY):
        handoffs.send(next(waiting))
    while finished < len(requests):
        while handoffs.poll(seconds_until(decoder)):
            handoff = handoffs.recv()
            decoder.add(requests[handoff.request_id], handoff)
        for event in decoder.step():
            if isinstance(event, Chunk):
                tokens += len(event.tokens)
                if event.finish is not None:
                    finished += 1
                    if (request := next(waiting, None)) is not None:
                        handoffs.send(request)
    return tokens


def seconds_until(engine: Prefiller | Decoder) -> float | None:
    """Return how long the engine may sleep; None: until a call."""
    deadline = engine.next_deadline()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def workload(builder: Builder, num_requests: int) -> dict[str, Request]:
    """Return the requests that `sparkpool bench` sends with these lengths."""
    ordinary = sorted(set(range(builder.facts.vocab_size)) - set(builder.facts.eos_token_ids))
    jobs = random_jobs(LENGTHS, ordinary, Random("0 load"))
    stop = StopRules(max_tokens=LENGTHS.output, ignore_eos=True)
    return {
        name: Request(id=name, prompt=tuple(job.prompt), sampling=Sampling(), stop=stop)  # type: ignore[arg-type]
        for name, job in ((new_agent_name("request"), next(jobs)) for _ in range(num_requests))
    }
