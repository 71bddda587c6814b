"""Runs `sparkpool bench`, from its options to its figures."""

import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.client import generate_request
from cluster.loadgen.endpoint import APIS, Endpoint, base_url, connected, read_key
from cluster.loadgen.load import LoadGenerator, RequestRecord, Schedule, SendRequest
from cluster.loadgen.report import Summary, as_json, latency_table, lines, reasons, summary
from cluster.loadgen.words import Words
from cluster.loadgen.workload import Job, Lengths, arrivals, as_text, random_jobs, read_prompts
from cluster.proto import sparkpool_pb2 as pb
from cluster.proto.sparkpool_pb2_grpc import InferenceStub
from cluster.records import RecordFiles
from decode.record import WRITE_SECONDS
from engine.config import SHIPPED_MODEL
from engine.errors import ConfigError

DEFAULT_CONCURRENCY, DEFAULT_REQUESTS, DEFAULT_OUTPUT_TOKENS = 8, 64, 64
CONNECT_SECONDS = 10.0
ENDPOINT_OPTIONS = ("model", "api", "key_file", "tokenizer")
SERVICE_OPTIONS = ("address", "application", "decode_pool", "service_tier", "record")

RandomJobs = Callable[[Random], Iterator[Job]]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of the command; `sparkpool bench --help` explains them."""

    address: str
    application: str
    endpoint: str = ""
    model: str = ""
    api: str | None = None
    key_file: Path | None = None
    tokenizer: Path | None = None
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
            raise ConfigError("--rate: must be finite; for requests without pause use --concurrency")
        if self.requests is not None and self.seconds is not None:
            raise ConfigError("--requests and --seconds: give only one of them: it ends the run")
        if self.warmup < 0:
            raise ConfigError(f"--warmup: must not be negative, is {self.warmup}")
        if self.json_file is not None and not self.json_file.absolute().parent.is_dir():
            raise ConfigError(f"--json {self.json_file}: there is no such directory")
        for name in SERVICE_OPTIONS if self.endpoint else ENDPOINT_OPTIONS:
            if getattr(self, name):
                reason = "cannot be used with --endpoint" if self.endpoint else "needs --endpoint"
                raise ConfigError(f"--{name.replace('_', '-')}: {reason}")
        if self.endpoint:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        base_url(self.endpoint)
        if not self.model:
            raise ConfigError("--model: an endpoint needs the name of a model")
        if self.api not in APIS:
            raise ConfigError(f"--api: {self.api!r} is none of {', '.join(APIS)}")
        if self.tokenizer is not None and self.prompts is not None:
            raise ConfigError("--tokenizer and --prompts: a tokenizer is for random prompts")

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

    def destination(self) -> Endpoint:
        """Return the endpoint to measure. Sampling options with their default are not sent, since not every server has
        every field; except the temperature, whose default differs."""
        sampling: dict[str, object] = {"temperature": self.temperature}
        sampling |= {"top_p": self.top_p} if self.top_p != 1.0 else {}
        sampling |= {"top_k": self.top_k} if self.top_k else {}
        sampling |= {"seed": self.sampling_seed} if self.sampling_seed is not None else {}
        sampling |= {"ignore_eos": True} if self.ignore_eos else {}
        return Endpoint(
            base=base_url(self.endpoint),
            model=self.model,
            chat=self.api == "chat",
            sampling=sampling,
            key="" if self.key_file is None else read_key(self.key_file),
        )


def run(options: BenchOptions, console: Console) -> tuple[Summary, bool]:
    """Measure and print. Return the figures, and whether the user interrupted. Raises ConfigError and grpc.RpcError."""
    options.check()
    run = BenchRun(options)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    asyncio.run(run.measure(console))
    figures = summary(run.records, run.cpu_seconds)
    console.print(latency_table(figures))
    for line in (*lines(figures), *reasons(run.records)):
        console.print(line, soft_wrap=True, markup=False)
    if options.json_file is not None:
        config = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
        options.json_file.write_text(json.dumps(as_json(config, started, run.records, figures)) + "\n")
    return figures, run.interrupted


class BenchRun:
    """Sends the load that the options describe to the service or the endpoint."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        chat = options.api == "chat"
        given = options.prompts
        self._prompts = None if given is None else read_prompts(given, options.output_tokens, text_only=chat)
        self.records: list[RequestRecord] = []
        self.cpu_seconds = 0.0
        self.interrupted = False

    async def measure(self, console: Console) -> None:
        """Warm up, then send the load. Ctrl-C ends the load early."""
        await (self._measure_endpoint(console) if self._options.endpoint else self._measure_pools(console))

    async def _measure_pools(self, console: Console) -> None:
        """Measure our own service: ask for its model first, and at the end for the steps that it recorded."""
        options = self._options
        async with grpc.aio.insecure_channel(options.address) as channel:
            stub = InferenceStub(channel)
            metadata = (("application", options.application),)
            model = await stub.GetModel(pb.GetModelRequest(), metadata=metadata, timeout=CONNECT_SECONDS)
            ordinary = sorted(set(range(model.vocab_size)) - set(model.eos_token_ids))

            def send(job: Job) -> AsyncIterator[pb.GenerateReply]:
                replies: AsyncIterator[pb.GenerateReply] = stub.Generate(options.request(job), metadata=metadata)
                return replies

            random = partial(self._random_jobs, model.max_tokens, ordinary)
            await self._warm_up(send, random)
            recorded = RecordFiles(options.record) if options.record is not None else None
            if recorded is not None:
                await recorded.begin(stub, metadata)
            await self._send(send, random, console)
            if recorded is not None:
                await asyncio.sleep(2 * WRITE_SECONDS)  # until replicas have written their last steps
                for file, steps in (await recorded.fetch(stub, metadata)).items():
                    console.print(f"{steps} steps recorded in {file}", soft_wrap=True)

    async def _measure_endpoint(self, console: Console) -> None:
        """Measure a server whose tokenizer and limits are unknown: random prompts are text."""
        endpoint = self._options.destination()
        words = None if self._prompts is not None else Words.load(self._options.tokenizer or SHIPPED_MODEL)

        def random(rng: Random) -> Iterator[Job]:
            assert words is not None, "only without --prompts"
            return as_text(self._random_jobs(sys.maxsize, words.tokens, rng), words.decode)

        async with connected(endpoint) as send:
            await self._warm_up(send, random)
            await self._send(send, random, console)

    async def _warm_up(self, send: SendRequest, random: RandomJobs) -> None:
        load = LoadGenerator(send, Schedule(concurrency=self._options.concurrency or DEFAULT_CONCURRENCY))
        await load.run(islice(self._jobs(random, "warm-up"), self._options.warmup))

    async def _send(self, send: SendRequest, random: RandomJobs, console: Console) -> None:
        with _bar(console) as bar:
            task = bar.add_task("requests", total=self._num_requests)
            load = LoadGenerator(send, self._schedule(), on_end=lambda _: bar.advance(task))
            await self._watched(load, islice(self._jobs(random, "load"), self._num_requests))

    async def _watched(self, load: LoadGenerator, jobs: Iterator[Job]) -> None:
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
        """Return after how many requests the run ends; None if it ends after --seconds."""
        if self._options.seconds is not None:
            return None
        return self._options.requests or (DEFAULT_REQUESTS if self._prompts is None else len(self._prompts))

    def _schedule(self) -> Schedule:
        options = self._options
        if options.rate is None:
            return Schedule(concurrency=options.concurrency or DEFAULT_CONCURRENCY, seconds=options.seconds)
        due = arrivals(options.rate, options.burstiness, Random(f"{options.seed} arrivals"))
        return Schedule(concurrency=options.concurrency, due=due, seconds=options.seconds)

    def _jobs(self, random: RandomJobs, part: str) -> Iterator[Job]:
        """Yield requests without end; the warm-up has other random prompts than the load."""
        if self._prompts is not None:
            return cycle(self._prompts)
        return random(Random(f"{self._options.seed} {part}"))

    def _random_jobs(self, max_tokens: int, tokens: list[int], rng: Random) -> Iterator[Job]:
        """Yield random requests, of these tokens, that fit a model's limit of `max_tokens`."""
        self._options.lengths.check(max_tokens)
        return random_jobs(self._options.lengths, tokens, rng)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, refresh_per_second=2, transient=True)
