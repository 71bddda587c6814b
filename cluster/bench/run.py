"""One run of `sparkpool bench`, from its options to its figures."""

import asyncio
import json
import math
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.bench.load import Load, Record, Schedule
from cluster.bench.report import Summary, as_json, latency_table, lines, summary
from cluster.bench.workload import Job, Lengths, arrivals, random_jobs, read_prompts
from cluster.client import generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.proto.sparkpool_pb2_grpc import InferenceStub
from cluster.records import Kept
from decode.record import WRITE_SECONDS
from engine.errors import ConfigError

DEFAULT_CONCURRENCY, DEFAULT_REQUESTS, DEFAULT_OUTPUT_TOKENS = 8, 64, 64
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command's options, which `sparkpool bench --help` explains."""

    address: str
    application: str
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    requests: int | None = None
    seconds: float | None = None
    prompts: Path | None = None
    input_tokens: int = 128
    output_tokens: int | None = None
    input_spread: float = 0.0
    output_spread: float = 0.0
    prefix_tokens: int = 0
    warmup: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    sampling_seed: int | None = None
    ignore_eos: bool | None = None
    decode_pool: str = ""
    service_tier: str = ""
    seed: int = 0
    json_file: Path | None = None
    record: Path | None = None

    def check(self) -> None:
        """Raise ConfigError for the first option that makes no sense."""
        for name in ("concurrency", "rate", "burstiness", "requests", "seconds", "output_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: must be above 0, is {value}")
        if self.rate is not None and math.isinf(self.rate):
            raise ConfigError("--rate: must be finite; --concurrency keeps so many requests under way")
        if self.requests is not None and self.seconds is not None:
            raise ConfigError("--requests and --seconds: only one of them can end the run")
        if self.warmup < 0:
            raise ConfigError(f"--warmup: must not be negative, is {self.warmup}")
        if self.json_file is not None and not self.json_file.absolute().parent.is_dir():
            raise ConfigError(f"--json {self.json_file}: there is no such directory")

    @property
    def lengths(self) -> Lengths:
        return Lengths(
            input=self.input_tokens,
            output=self.output_tokens or DEFAULT_OUTPUT_TOKENS,
            input_spread=self.input_spread,
            output_spread=self.output_spread,
            prefix=self.prefix_tokens,
        )

    def request(self, job: Job) -> pb.GenerateRequest:
        return generate_request(
            job.prompt,
            max_tokens=job.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.sampling_seed,
            ignore_eos=(self.prompts is None) if self.ignore_eos is None else self.ignore_eos,
            decode_pool=self.decode_pool,
            service_tier=self.service_tier,
        )


def run(options: Options, console: Console) -> tuple[Summary, bool]:
    """Measure and print: the figures, and whether the user broke off. Raises ConfigError and grpc.RpcError."""
    options.check()
    run = Run(options)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    asyncio.run(run.measure(console))
    figures = summary(run.records, run.cpu_seconds)
    console.print(latency_table(figures))
    for line in lines(figures):
        console.print(line, soft_wrap=True)
    if options.json_file is not None:
        config = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
        options.json_file.write_text(json.dumps(as_json(config, started, run.records, figures)) + "\n")
    return figures, run.interrupted


class Run:
    """The workload of some options, sent to their address."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._prompts = None if options.prompts is None else read_prompts(options.prompts, options.output_tokens)
        self.records: list[Record] = []
        self.cpu_seconds = 0.0
        self.interrupted = False

    async def measure(self, console: Console) -> None:
        """Ask for the model, warm up, send the load. Ctrl-C ends the load early."""
        options = self._options
        async with grpc.aio.insecure_channel(options.address) as channel:
            stub: Any = InferenceStub(channel)  # type: ignore[no-untyped-call]
            metadata = (("application", options.application),)
            model = await stub.GetModel(pb.GetModelRequest(), metadata=metadata, timeout=CONNECT_SECONDS)

            def ask(job: Job) -> AsyncIterator[pb.GenerateReply]:
                replies: AsyncIterator[pb.GenerateReply] = stub.Generate(options.request(job), metadata=metadata)
                return replies

            warm_up = Load(ask, Schedule(concurrency=options.concurrency or DEFAULT_CONCURRENCY))
            await warm_up.run(islice(self._jobs(model, "warm-up"), options.warmup))
            kept = Kept(options.record) if options.record is not None else None
            if kept is not None:
                await kept.begin(stub, metadata)
            with _bar(console) as bar:
                task = bar.add_task("requests", total=self._num_requests)
                load = Load(ask, self._schedule(), on_end=lambda _: bar.advance(task))
                await self._watched(load, islice(self._jobs(model, "load"), self._num_requests))
            if kept is not None:
                await asyncio.sleep(2 * WRITE_SECONDS)  # until replicas have written their last steps
                for file, steps in (await kept.fetch(stub, metadata)).items():
                    console.print(f"{steps} steps recorded in {file}", soft_wrap=True)

    async def _watched(self, load: Load, jobs: Iterator[Job]) -> None:
        self.records = load.records
        cpu_started = time.process_time()
        loop, running = asyncio.get_running_loop(), asyncio.ensure_future(load.run(jobs))
        loop.add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            self.interrupted = True
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self.cpu_seconds = time.process_time() - cpu_started

    @property
    def _num_requests(self) -> int | None:
        """How many requests end the run; None if its seconds do."""
        if self._options.seconds is not None:
            return None
        return self._options.requests or (DEFAULT_REQUESTS if self._prompts is None else len(self._prompts))

    def _schedule(self) -> Schedule:
        options = self._options
        if options.rate is None:
            return Schedule(concurrency=options.concurrency or DEFAULT_CONCURRENCY, seconds=options.seconds)
        due = arrivals(options.rate, options.burstiness, Random(f"{options.seed} arrivals"))
        return Schedule(concurrency=options.concurrency, due=due, seconds=options.seconds)

    def _jobs(self, model: pb.Model, part: str) -> Iterator[Job]:
        """Requests without end; the warm-up's random prompts are others than the load's."""
        if self._prompts is not None:
            return cycle(self._prompts)
        lengths = self._options.lengths
        lengths.check(model.max_tokens)
        ordinary = sorted(set(range(model.vocab_size)) - set(model.eos_token_ids))
        return random_jobs(lengths, ordinary, Random(f"{self._options.seed} {part}"))


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, refresh_per_second=2, transient=True)
