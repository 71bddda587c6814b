"""The systems of a study under their workload, with queues and chance: first tokens and whole answers as users see.

Each is as large as it needs to be for its prefill replicas to come out nearly whole, and is sent requests at the rate
at which steady state (compare/steady.py) would have so many under way in each decode replica.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from compare.acceptance import Rates
from compare.fast import FastSystem, simulate_fast
from compare.fast_replicas import Decoding, Prefilling
from compare.mixes import arrival_times
from compare.outcome import Result
from compare.scenario import WorkloadSection
from compare.steady import CHUNK, Point
from compare.study import Study
from compare.workload import Arrival, Segment, Workload
from engine.errors import ConfigError
from engine.files import replaced
from hardware.link import Link

LOADS = (1, 8, 64, 256, 1024)
REPLICAS = 6  # of decode, at most
WAVES, LEAST, MOST = 4, 200, 12_000  # requests for each that is under way, and bounds
WARM = 0.4  # of the requests, which come before the system is as full as it will be: they are not counted
MESSAGE, ANNOUNCED = 2e-4, 2e-4  # seconds between processes: what gRPC takes on this project's own cluster, in order
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Seen:
    """What users of a system saw at one load. Seconds; times by percentile."""

    requests: int
    user_rate: float
    ttft: dict[str, float]
    end_to_end: dict[str, float]
    steady_rate: float
    """Tokens per second of each user that steady state says."""


def wanted(study: Study) -> list[tuple[str, int]]:
    """Systems and loads. Those without a prefill pool are not among them: the fast simulator has none that mixes."""
    found = []
    for name, setups in study.built.setups.items():
        most = setups[0].max_requests
        if setups[0].prefill is not None:
            found += [(name, load) for load in LOADS if load <= min(most, study.most)]
    return found


def served(study: Study, folder: Path) -> Iterator[tuple[str, int, Seen]]:
    """Of all that is wanted, one after the other. What is in `folder` already is not computed again: a file is named by
    everything that it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, load in wanted(study):
        file = folder / f"{_key(study, name, load)}.json"
        if file.is_file():
            yield name, load, _read(file)
            continue
        one = simulated(study, name, load)
        with replaced(file) as partial:
            partial.write_text(json.dumps({"system": name, "load": load, **asdict(one)}, indent=1) + "\n")
        yield name, load, one


def simulated(study: Study, name: str, load: int) -> Seen:
    point = study.steady[name][0].at(load)
    decode = min(range(1, REPLICAS + 1), key=lambda count: (_rounded_up(point, count) / count, count))
    system = _system(study, point, decode, max(1, _rounded_up(point, decode)))
    rate = point.arrivals * decode
    requests = min(max(WAVES * load * decode, LEAST), MOST)
    result = simulate_fast(system, _workload(study, rate, requests), study.scenario.seed)
    late = result.done[int(WARM * len(result.done)) :]
    kept = Result(late, result.machines, result.seconds)
    return Seen(
        requests=len(late),
        user_rate=1 / kept.mean_tpot,
        ttft={str(percentile): kept.ttft(percentile) for percentile in PERCENTILES},
        end_to_end={str(percentile): kept.end_to_end(percentile) for percentile in PERCENTILES},
        steady_rate=point.user_rate,
    )


def _rounded_up(point: Point, decode: int) -> int:
    return math.ceil(point.prefill_replicas * decode)


def _system(study: Study, point: Point, decode: int, prefill: int) -> FastSystem:
    setup, scenario = point.setup, study.scenario
    assert setup.prefill is not None and setup.prefill_part is not None
    context = scenario.workload.input_tokens
    numbers = setup.prefill_part.numbers
    bandwidth = numbers.get("scale_out") * setup.prefill_part.units
    return FastSystem(
        prefill=Prefilling(
            replicas=prefill,
            times=setup.prefill,
            chunk_tokens=CHUNK,
            cached_tokens=2 * context,
        ),
        decode=Decoding(
            replicas=decode,
            times=setup.times,
            max_requests=setup.max_requests,
            cache_tokens=setup.max_requests * (context + scenario.workload.output_tokens),
            link=Link(bandwidth, ANNOUNCED),
            token_bytes=study.built.model.kept_bytes(context) / context,
            acceptance=_rates(study, setup.drafts) if setup.drafts != "none" else None,
            fixed={"mtp": 1, "fixed": study.drafting.block}.get(setup.drafts),
        ),
        hop_seconds=MESSAGE,
        message_seconds=MESSAGE,
    )


def _rates(study: Study, drafts: str) -> Rates:
    if drafts == "mtp":
        return Rates.of_lengths(study.scenario.acceptance.mtp)
    return Rates.of_lengths(*study.scenario.acceptance.dspark)


def _workload(study: Study, rate: float, requests: int) -> Workload:
    section: WorkloadSection = study.scenario.workload
    known = section.input_tokens - section.new_tokens
    shared = (Segment("known", known),) if known else ()
    times = arrival_times(rate, study.scenario.seed)
    return Workload(
        tuple(
            Arrival(at=at, input_tokens=section.input_tokens, output_tokens=section.output_tokens, shared=shared)
            for at, _ in zip(times, range(requests), strict=False)
        )
    )


def _key(study: Study, name: str, load: int) -> str:
    """Everything that the point depends on: the scenario, the figures of its devices, and how it is simulated."""
    figures = {device: numbers.device.model_dump(mode="json") for device, numbers in study.built.numbers.items()}
    losses = {device: str(study.built.losses(device)) for device in study.built.numbers}
    scenario = study.scenario.model_dump(mode="json", exclude={"measured", "predictions", "title", "about"})
    how = [LOADS, REPLICAS, WAVES, LEAST, MOST, WARM, MESSAGE, ANNOUNCED, CHUNK]
    content = json.dumps([scenario, figures, losses, how, name, load], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _read(file: Path) -> Seen:
    try:
        content = json.loads(file.read_text())
        return Seen(**{key: value for key, value in content.items() if key not in ("system", "load")})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}; remove it to have it computed again") from None
