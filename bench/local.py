"""Measures prefill in the decode replica: the time to the first token, and the cost to running requests.

The shipped model decodes greedily, without speculation. A prompt goes one of two ways: `local` is prefilled in the
decode engine itself, in chunks of `local_chunk_tokens`; `handoff` in a prefill engine of the same process and on the
same cores, in larger chunks, and its pages are copied (LocalTransfer). Without a network and other processes, a handoff
is as cheap here as it can be. While requests run, prompts come one after the other, the next when the last is done.
"""

import itertools
import time
from statistics import median
from typing import Any

from bench.ceiling import MachineRates
from bench.console import TableRow
from bench.shape import BenchOptions, BenchReport
from bench.speculation import held_out_prompts
from engine.config import SHIPPED_MODEL, Config
from engine.local_transfer import LocalTransfer
from engine.models import load_model
from engine.transfer import new_agent_name
from engine.types import Chunk, Handoff, Request, Sampling, StopRules
from local import Builder, ColocatedEngine, Pair

PROMPTS = (16, 64, 256, 1024)
RUNNING, SECONDS, ROUNDS = 8, 4.0, 9
TTFT_TARGET, KEPT_TARGET = 1.0, 0.5
LOCAL, HANDOFF = "local", "handoff"


class Way:
    """A decode engine that also prefills, and a prefill engine: a prompt goes `LOCAL` or by `HANDOFF`."""

    def __init__(self, options: BenchOptions) -> None:
        engine = {"device": str(options.device), "threads": options.threads, "cache_bytes": "256MiB"}
        engine |= {"prefix_caching": False}
        config = Config.parse({"prefill": {**engine, "lease_seconds": 3600.0}, "decode": {"default": engine}})
        model = load_model(SHIPPED_MODEL, config.model.torch_dtype, options.device)
        self.pair = Pair(config, builder=Builder(config, config.prefill, model))
        decode = self.pair.builder.decode_engine(new_agent_name("decode"), self._join, self.pair.text)
        assert isinstance(decode, ColocatedEngine)
        self.colocated = decode
        self.colocated.warm_up()
        self.pair.prefiller.warm_up()
        self._requests: dict[str, Request] = {}
        self._numbers = itertools.count()
        source = [token for prompt in held_out_prompts() for token in prompt]
        self._source = (source * (max(PROMPTS) // len(source) + 2))[: 2 * max(PROMPTS)]

    def request(self, num_tokens: int, max_tokens: int) -> Request:
        number = next(self._numbers)
        begin = number % max(PROMPTS)
        prompt = tuple(self._source[begin : begin + num_tokens])
        stop = StopRules(max_tokens=max_tokens, ignore_eos=True)
        return Request(id=str(number), prompt=prompt, sampling=Sampling(), stop=stop)

    def begin(self, request: Request, way: str) -> None:
        if way == LOCAL:
            self.colocated.serve(request)
        else:
            self._requests[request.id] = request
            self.pair.prefiller.add(request)

    def step(self) -> list[Chunk]:
        """Run one step of each engine."""
        for event in self.pair.prefiller.step():
            if isinstance(event, Handoff):
                self.colocated.add(self._requests.pop(event.request_id), event)
        return [event for event in self.colocated.step() if isinstance(event, Chunk)]

    def run(self) -> None:
        while self.colocated.next_deadline() is not None or self.pair.prefiller.next_deadline() is not None:
            self.step()

    def second_token_seconds(self, num_tokens: int, way: str) -> tuple[float, float]:
        """Return the seconds until a single request has its first and its second token; the second needs the pages."""
        request = self.request(num_tokens, max_tokens=2)
        heard: list[float] = []
        started = time.perf_counter()
        self.begin(request, way)
        while len(heard) < 2:
            said = len(self.step())
            heard += [time.perf_counter() - started] * said
        self.run()
        return heard[0], heard[1]

    def running_tok_s(self, num_tokens: int, way: str | None, seconds: float) -> tuple[float, float]:
        """Return the output tokens per second of RUNNING requests while one prompt after the other comes that way, and
        the prompts per second."""
        running = [self.request(64, max_tokens=4000) for _ in range(RUNNING)]
        for one in running:
            self.begin(one, LOCAL)
        names = {one.id for one in running}
        while self.colocated.decoder.stats().running < RUNNING:
            self.step()
        came = tokens = 0
        coming: str | None = None
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            if way is not None and coming is None:
                one = self.request(num_tokens, max_tokens=1)
                coming = one.id
                self.begin(one, way)
            for chunk in self.step():
                tokens += len(chunk.tokens) if chunk.request_id in names else 0
                if chunk.request_id == coming:
                    coming, came = None, came + 1
        elapsed = time.perf_counter() - started
        for one in running:
            self.colocated.cancel(one.id)
        self.run()
        return tokens / elapsed, came / elapsed

    def _join(self, name: str, store: Any) -> LocalTransfer:
        return LocalTransfer(name, store, self.pair.wire)


def run(report: BenchReport) -> None:
    options = report.options
    report.ceiling("memory read, GB/s", MachineRates.measured(options).read_bytes_per_second / 1e9)
    way = Way(options)
    rounds, seconds = (2, 0.2) if options.quick else (ROUNDS, SECONDS)
    report.table("a prompt alone", [_alone(way, n, rounds, report) for n in PROMPTS])
    rows = [_beside(way, n, 3, seconds) for n in (PROMPTS[:2] if options.quick else PROMPTS)]
    report.table(f"{RUNNING} running answers while prompts come", rows)
    for row in report.figures["a prompt alone"]:
        what = f"time to the second token of {row['prompt']} prompt tokens, local over handoff"
        report.goal(what, row["second_token_over_handoff"], TTFT_TARGET, "", at_most=True)
    for row in rows:
        what = f"tok/s of {RUNNING} answers while prompts of {row['prompt']} tokens are prefilled, over without"
        report.goal(what, row["local_of_alone"], KEPT_TARGET, "")


def _alone(way: Way, num_tokens: int, rounds: int, report: BenchReport) -> TableRow:
    first: dict[str, list[float]] = {LOCAL: [], HANDOFF: []}

    def timed(side: str) -> float:
        until_first, until_second = way.second_token_seconds(num_tokens, side)
        first[side].append(until_first)
        return until_second

    sides = {side: lambda _, side=side: timed(side) for side in (LOCAL, HANDOFF)}
    second = report.alternately(f"{num_tokens} tokens", sides, range(rounds))
    return {
        "prompt": num_tokens,
        "local_first_ms": 1e3 * median(first[LOCAL][1:]),
        "handoff_first_ms": 1e3 * median(first[HANDOFF][1:]),
        "local_second_ms": 1e3 * second.median(LOCAL),
        "handoff_second_ms": 1e3 * second.median(HANDOFF),
        "second_token_over_handoff": second.speed_up(HANDOFF, over=LOCAL),
    }


def _beside(way: Way, num_tokens: int, rounds: int, seconds: float) -> TableRow:
    """Measure in alternate rounds; the first is the warm-up, and the others' medians count."""
    sides: dict[str, str | None] = {"alone": None, LOCAL: LOCAL, HANDOFF: HANDOFF}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(way.running_tok_s(num_tokens, side, seconds))
    kept = {name: [tok_s for tok_s, _ in values[1:]] for name, values in found.items()}
    came = {name: median(prompts for _, prompts in values[1:]) for name, values in found.items()}
    return {
        "prompt": num_tokens,
        "alone_tok_s": median(kept["alone"]),
        "local_tok_s": median(kept[LOCAL]),
        "handoff_tok_s": median(kept[HANDOFF]),
        "local_of_alone": median(a / b for a, b in zip(kept[LOCAL], kept["alone"], strict=True)),
        "local_prompts_s": came[LOCAL],
        "handoff_prompts_s": came[HANDOFF],
    }
