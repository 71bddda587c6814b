"""Makes the requests of a load: prompts from a file, or random tokens of given lengths; and their arrival times.

The same seed gives the same prompts at the same times.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from engine.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One request to send: its prompt as text or as token ids, and `max_tokens` (None: the server's default)."""

    prompt: str | list[int]
    max_tokens: int | None


def read_prompts(file: Path, max_tokens: int | None = None, *, text_only: bool = False) -> list[Job]:
    """Read prompts from a file, one per line, skipping blank lines. Raises ConfigError with the number of a wrong line.

    In a `.jsonl` file a line is {"prompt": text or token ids, "max_tokens": number}, and `max_tokens` may be left
    out; in any other file the line itself is the prompt. With `text_only`, token ids are refused.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {file}: {error}") from None
    jobs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                job = _job(json.loads(line), max_tokens) if file.suffix == ".jsonl" else Job(line, max_tokens)
                if text_only and not isinstance(job.prompt, str):
                    raise ValueError("prompt is token ids; an endpoint takes them with --api completions only")
                jobs.append(job)
            except ValueError as error:  # JSONDecodeError is one
                raise ConfigError(f"--prompts {file}: line {number}: {error}") from None
    if not jobs:
        raise ConfigError(f"--prompts {file}: holds no prompt")
    return jobs


def _job(entry: object, max_tokens: int | None) -> Job:
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError('must be an object with "prompt"')
    if unknown := sorted(entry.keys() - {"prompt", "max_tokens"}):
        raise ValueError(f'{unknown[0]!r} is unknown; "prompt" and "max_tokens" are read')
    prompt, limit = entry["prompt"], entry.get("max_tokens", max_tokens)
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(token) is int for token in prompt)):
        raise ValueError("prompt must be text or a list of token ids")
    if not prompt:
        raise ValueError("prompt is empty")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"max_tokens must be a whole number of at least 1, is {limit!r}")
    return Job(prompt, limit)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Numbers of tokens of random prompts and their answers: uniform in mean * (1 - spread) to mean * (1 + spread).

    `prefix` tokens, the same in all prompts of a run, come before the input and are not part of its length.
    """

    input: int
    output: int
    input_spread: float = 0.0
    output_spread: float = 0.0
    prefix: int = 0

    def check(self, max_tokens: int) -> None:
        """Raise ConfigError unless the longest request fits a model that takes `max_tokens`."""
        for name, value in (("--input-tokens", self.input), ("--output-tokens", self.output)):
            if value < 1:
                raise ConfigError(f"{name}: must be at least 1, is {value}")
        for name, share in (("--input-spread", self.input_spread), ("--output-spread", self.output_spread)):
            if not 0.0 <= share < 1.0:
                raise ConfigError(f"{name}: must be in [0, 1), is {share}")
        if self.prefix < 0:
            raise ConfigError(f"--prefix-tokens: must not be negative, is {self.prefix}")
        longest = self.prefix + _bounds(self.input, self.input_spread)[1] + _bounds(self.output, self.output_spread)[1]
        if longest > max_tokens:
            raise ConfigError(
                f"--input-tokens: the longest request has {longest} tokens (--prefix-tokens and --output-tokens "
                f"included); the model takes {max_tokens}"
            )


def _bounds(mean: int, spread: float) -> tuple[int, int]:
    return max(1, math.floor(mean * (1 - spread))), math.ceil(mean * (1 + spread))


def random_jobs(lengths: Lengths, tokens: range | list[int], rng: Random) -> Iterator[Job]:
    """Yield requests without end, their prompts drawn from `tokens`."""
    prefix = rng.choices(tokens, k=lengths.prefix)
    while True:
        size = rng.randint(*_bounds(lengths.input, lengths.input_spread))
        yield Job(prefix + rng.choices(tokens, k=size), rng.randint(*_bounds(lengths.output, lengths.output_spread)))


def as_text(jobs: Iterator[Job], decode: Callable[[list[int]], str]) -> Iterator[Job]:
    """Return the same requests with their prompts decoded to text."""
    return (job if isinstance(job.prompt, str) else replace(job, prompt=decode(job.prompt)) for job in jobs)


def arrivals(rate: float, burstiness: float, rng: Random) -> Iterator[float]:
    """Yield when requests are due, in seconds from the start, `rate` per second on average; the first is due at 0.

    Gaps are gamma distributed with shape `burstiness`: 1 is a Poisson process, less is burstier, infinity is regular.
    """
    if math.isinf(burstiness):
        return (index / rate for index in itertools.count())
    gaps = (rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in itertools.count())
    return itertools.accumulate(gaps, initial=0.0)
