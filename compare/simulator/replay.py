"""A run of `sparkpool bench`: its JSON file (--json) and its record of drafts (--record), to be simulated."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

from compare.simulator.acceptance import Recorded
from compare.simulator.workload import Arrival, Workload
from engine.errors import ConfigError


class ConfigJson(TypedDict, total=False):
    concurrency: float | None
    service_tier: str | None


class EmulatedJson(TypedDict):
    devices: list[str]
    comparable: bool


class SummaryJson(TypedDict):
    requests: int
    completed: int
    mean_prompt_tokens: float
    mean_output_tokens: float
    requests_per_second: float
    output_tokens_per_second: float
    latency: dict[str, dict[str, float]]
    emulated: NotRequired[EmulatedJson | None]


class RequestJson(TypedDict):
    status: str
    sent: float
    ended: float
    messages: list[tuple[float, int]]
    prompt_tokens: int


class BenchJson(TypedDict):
    """The part of a run's JSON file (cluster/loadgen/report.py) that is read here."""

    config: ConfigJson
    summary: SummaryJson
    requests: list[RequestJson]


@contextmanager
def bench_run(file: Path) -> Iterator[BenchJson]:
    """Read a run's JSON file. What goes wrong with its content inside becomes a ConfigError that names the file."""
    try:
        yield json.loads(file.read_text())
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: is no JSON of `sparkpool bench --json` ({error!r})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None


def workload_of(file: Path) -> Workload:
    """Return the requests of a run that ended OK, at the times when they were sent."""
    with bench_run(file) as run:
        tier = str(run["config"].get("service_tier") or "")
        arrivals = [
            Arrival(
                at=float(one["sent"]),
                input_tokens=int(one["prompt_tokens"]),
                output_tokens=sum(int(tokens) for _, tokens in one["messages"]),
                tier=tier,
            )
            for one in run["requests"]
            if one["status"] == "OK"
        ]
        if not arrivals:
            raise ValueError("no request ended OK")
    start = min(arrival.at for arrival in arrivals)
    return Workload(tuple(replace(arrival, at=arrival.at - start) for arrival in arrivals))


def acceptance_of(folder: Path) -> Recorded:
    """Return what all replicas' files in a folder that `sparkpool bench --record` wrote say of drafts."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"{folder}: holds no records (*.jsonl)")
    return Recorded.load(*files)
