"""Times a `Pair` of engines: prefill of prompts, decode of answers, and the parts of a decode step."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.ceiling import synchronize
from bench.device_work import CALLS, columns, work_of
from bench.shape import BenchOptions
from bench.speculation import SIDES
from engine.config import Config
from engine.device import peak_bytes
from engine.models import LoadedModel
from engine.stats import Counters
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair

Prompt = tuple[int, ...]
PAGE_TOKENS = 64
CHUNK_TOKENS = 2048
WARM_UP, STEPS = 4, 12
WATCHED_TOKENS = 8 * (WARM_UP + STEPS + 2 + CALLS)  # enough if every draft were accepted
PARTS = ("draft", "plan", "verify", "step", "compute")


@dataclass(frozen=True)
class Workload:
    """Numbers of concurrent requests, their lengths in tokens, and the number of rounds, of which the median counts."""

    at_once: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    rounds: int


class Served:
    """One side of bench/speculation.py over a model, with pages for all of a workload. `peak_gib` is the peak memory
    in addition to the model: pages of both engines, the drafter, and what a step needs."""

    def __init__(self, name: str, side: str, model: LoadedModel, workload: Workload, options: BenchOptions) -> None:
        of_model, of_decode = SIDES[side]
        longest = workload.prompt_tokens + max(workload.output_tokens, WATCHED_TOKENS) + 2 * PAGE_TOKENS
        row_bytes = sum(entry.row_bytes for entry in model.entries) * (1.5 if of_model else 1.0)  # the drafter's
        dtype = str(model.dtype).removeprefix("torch.")
        engine = {
            "device": str(options.device),
            "threads": options.threads,
            "max_requests": max(workload.at_once),
            "cache_bytes": int(max(workload.at_once) * longest * row_bytes),
            "prefix_caching": False,
        }
        config = Config.parse(
            {
                "model": {"path": model.files[0].parent, "dtype": dtype, "page_tokens": PAGE_TOKENS, **of_model},
                "prefill": {**engine, "chunk_tokens": CHUNK_TOKENS},
                "decode": {"default": engine | of_decode},
            }
        )
        self._of = {"model": name, "dtype": dtype, "side": side}
        self._workload, self._device = workload, options.device
        gc.collect()  # frees earlier engines, which are in reference cycles and would count
        self._held_before = _held_bytes(options.device)
        self.builder = Builder(config, config.prefill, model)
        self.pair = Pair(config, builder=self.builder)

    def answers(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], list[list[int]]]:
        """Return the figures of the median round, after a warm-up, and the tokens of the last round's answers."""
        runs = [self._run(prompts) for _ in range(1 + self._workload.rounds)][1:]
        middle = sorted(runs, key=lambda run: run["tok_s"])[self._workload.rounds // 2]
        said = [[t for chunk in self.pair.chunks[str(i)] for t in chunk.tokens] for i in range(len(prompts))]
        return {**self._of, "at_once": len(prompts), **middle}, said

    def step(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return a row about a whole decode step of these requests, and what the device does during it."""
        requests = self._begun(prompts, WATCHED_TOKENS)
        for _ in range(WARM_UP):
            self._step()
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - started)
        work = work_of(self._step, self._device)
        for request in requests:
            self.pair.cancel(request.id)
        of_step = {"step_ms": median(seconds) * 1e3, **columns(work, median(seconds))}
        return {**self._of, "at_once": len(prompts), **of_step}

    def step_times(self) -> list[dict[str, Any]]:
        """Return the step times that planners use: verifying no, some and all drafts of every request."""
        times = self.builder.step_times(self.builder.config.decode["default"])
        length = self.builder.block_length
        return [
            {
                **{key: self._of[key] for key in ("model", "dtype")},
                "requests": requests,
                "draft_ms": times.draft_seconds(requests, times.context) * 1e3,
                **{
                    f"verify_{1 + n}_each_ms": times.verify_seconds(requests, requests * (1 + n), times.context) * 1e3
                    for n in (0, length // 2, length)
                },
            }
            for requests in sorted(times.verify)
        ]

    def _step(self) -> None:
        self.pair.take(self.pair.decoder.step())

    def _begun(self, prompts: Sequence[Prompt], output_tokens: int) -> list[Request]:
        """Prefill all prompts and return their requests when decode has admitted them."""
        stop = StopRules(max_tokens=output_tokens, ignore_eos=True)
        asked = [Request(id=str(i), prompt=p, sampling=Sampling(), stop=stop) for i, p in enumerate(prompts)]
        self.pair.chunks.clear()
        self.pair.begin(asked)
        synchronize(self._device)
        return asked

    def _run(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        pair, output_tokens = self.pair, self._workload.output_tokens
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        started = time.perf_counter()
        self._begun(prompts, output_tokens)
        began, before = time.perf_counter(), pair.decoder.stats().counters
        while pair.requests:
            self._step()
        seconds, after = time.perf_counter() - began, pair.decoder.stats().counters
        assert not pair.errors, pair.errors
        tokens = len(prompts) * (output_tokens - 1)  # the first came from prefill
        prefilled = len(prompts) * self._workload.prompt_tokens
        return {
            "tok_s": tokens / seconds,
            "user_tok_s": tokens / seconds / len(prompts),
            "prefill_tok_s": prefilled / (began - started),
            **_per_step(before, after),
            "peak_gib": (peak_bytes(self._device) - self._held_before) / 2**30,
        }


def _held_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_bytes(device)


def _per_step(before: Counters, after: Counters) -> dict[str, float]:
    """Return means over the steps between two counts. `tau`: tokens that a step gives a request; `own_ms`: milliseconds
    of a step outside models."""

    def gained(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name))

    of = {part: gained(f"{part}_seconds") / gained("steps") * 1e3 for part in PARTS}
    tau = gained("tokens") / (gained("tokens") - gained("accepted"))
    return {"tau": tau, **{f"{part}_ms": of[part] for part in PARTS[:-1]}, "own_ms": of["step"] - of["compute"]}
