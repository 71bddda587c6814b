"""A run of `sparkpool bench`, to be simulated: what was sent when (--json), and what became of drafts (--record)."""

import json
from dataclasses import replace
from pathlib import Path

from compare.simulator.acceptance import Recorded
from compare.simulator.workload import Arrival, Workload
from engine.errors import ConfigError


def workload_of(run: Path) -> Workload:
    """The requests of a run's JSON file that ended OK, at the times when they were sent. Raises ConfigError that names
    the file and what is wrong."""
    try:
        content = json.loads(run.read_text())
        tier = str(content["config"].get("service_tier") or "")
        arrivals = [
            Arrival(
                at=float(one["sent"]),
                input_tokens=int(one["prompt_tokens"]),
                output_tokens=sum(int(tokens) for _, tokens in one["messages"]),
                tier=tier,
            )
            for one in content["requests"]
            if one["status"] == "OK"
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{run}: is no JSON of `sparkpool bench` ({type(error).__name__}: {error})") from None
    if not arrivals:
        raise ConfigError(f"{run}: no request ended OK")
    start = min(arrival.at for arrival in arrivals)
    return Workload(tuple(replace(arrival, at=arrival.at - start) for arrival in arrivals))


def acceptance_of(folder: Path) -> Recorded:
    """Of all replicas' files in a folder that `sparkpool bench --record` wrote."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"{folder}: holds no records (*.jsonl)")
    return Recorded.load(*files)
