"""The systems of a study under their workload, with queues and chance: first tokens and whole answers as users see.

Each is as large as it needs to be for its prefill replicas to come out nearly whole. As many requests as asked for are
under way in each decode replica all the time: each answer is followed by the next request.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random

from compare.simulator.acceptance import Rates
from compare.simulator.fast import FastSystem, simulate_fast
from compare.simulator.fast_replicas import FastDecodePool, FastPrefillPool
from compare.simulator.outcome import SimulationResult
from compare.simulator.workload import Arrival, PromptSegment, Workload
from compare.study.scenario import WorkloadSection
from compare.study.setups import Setup
from compare.study.steady import CHUNK, OperatingPoint
from compare.study.study import Study
from engine.errors import ConfigError
from engine.files import atomic_write
from hardware.link import Link

LOADS = (1, 8, 64, 256, 1024)
REPLICAS = 6  # of decode, at most
SPREAD = 0.5  # of answers, around their mean: equal ones would end together for ever
WAVES, MIN_REQUESTS, MAX_REQUESTS = 4, 200, 12_000  # requests for each that is under way, and bounds
WARM = 0.4  # of the requests, the first of which are not counted; nor are the last, which run in smaller batches
MESSAGE, ANNOUNCED = 2e-4, 2e-4  # seconds of a message, and of a read before its bytes: ours, as on a local network
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class LoadResult:
    """Latencies of a system at one load, in seconds by percentile."""

    requests: int
    user_rate: float
    ttft: dict[str, float]
    end_to_end: dict[str, float]
    steady_rate: float
    """Tokens per second of each user in the steady-state model."""


def wanted(study: Study) -> list[tuple[str, int]]:
    """Return the systems and loads to simulate: only systems with a prefill pool, since the fast simulator does not mix
    prompts into decode steps."""
    found = []
    for name, setups in study.built.setups.items():
        limit = min(setups[0].max_requests, study.max_requests)
        if setups[0].prefill is not None:
            found += [(name, load) for load in LOADS if load <= limit]
    return found


def served(study: Study, folder: Path) -> Iterator[tuple[str, int, LoadResult]]:
    """Yield the results of all systems and loads. Those in `folder` are not computed again: the name of a file is a
    hash of everything that it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, load in wanted(study):
        file = folder / f"{_key(study, name, load)}.json"
        if file.is_file():
            yield name, load, _read(file)
            continue
        one = simulated(study, name, load)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps({"system": name, "load": load, **asdict(one)}, indent=1) + "\n")
        yield name, load, one


def simulated(study: Study, name: str, load: int) -> LoadResult:
    point = study.steady[name][0].at(load)
    decode = min(range(1, REPLICAS + 1), key=lambda count: (_rounded_up(point, count) / count, count))
    system = _system(study, point, decode, max(1, _rounded_up(point, decode)))
    under_way = load * decode
    requests = min(max(WAVES * under_way, MIN_REQUESTS), MAX_REQUESTS)
    result = simulate_fast(system, _workload(study, requests, under_way), study.scenario.seed, under_way)
    by_arrival = sorted(result.done, key=lambda one: one.at)
    kept = SimulationResult(by_arrival[int(WARM * len(by_arrival)) : -under_way], result.machines, result.seconds)
    return LoadResult(
        requests=len(kept.served),
        user_rate=1 / kept.mean_tpot,
        ttft={str(percentile): kept.ttft(percentile) for percentile in PERCENTILES},
        end_to_end={str(percentile): kept.end_to_end(percentile) for percentile in PERCENTILES},
        steady_rate=point.user_rate,
    )


def _rounded_up(point: OperatingPoint, decode: int) -> int:
    return math.ceil(point.prefill_replicas * decode)


def _system(study: Study, point: OperatingPoint, decode: int, prefill: int) -> FastSystem:
    setup, scenario = point.setup, study.scenario
    assert setup.prefill is not None and setup.prefill_part is not None
    context = scenario.workload.input_tokens
    return FastSystem(
        prefill=FastPrefillPool(
            replicas=prefill,
            times=setup.prefill,
            chunk_tokens=CHUNK,
            cached_tokens=2 * context,
        ),
        decode=FastDecodePool(
            replicas=decode,
            times=setup.times,
            max_requests=setup.max_requests,
            cache_tokens=setup.max_requests * (context + scenario.workload.output_tokens),
            link=Link(_bandwidth(setup, prefill / decode), ANNOUNCED),
            token_bytes=study.built.model.kept_bytes(context) / context,
            acceptance=_rates(study, setup.drafts) if setup.drafts != "none" else None,
            fixed={"mtp": 1, "fixed": study.drafting.block}.get(setup.drafts),
        ),
        hop_seconds=MESSAGE,
        message_seconds=MESSAGE,
    )


def _bandwidth(setup: Setup, prefill_replicas: float) -> float:
    """Bytes per second into a decode replica: what its own units take, or what so many prefill replicas send."""
    assert setup.prefill_part is not None
    sent, taken = (part.numbers.get("scale_out") * part.units for part in (setup.prefill_part, setup.decode))
    return min(max(1.0, prefill_replicas) * sent, taken)


def _rates(study: Study, drafts: str) -> Rates:
    """A planner verifies the most certain drafts of all: with j of each request in the mean, the j-th adds what steady
    state has it add."""
    if drafts == "mtp":
        return Rates.of_lengths(study.scenario.acceptance.mtp)
    if drafts == "fixed":
        return Rates.of_lengths(*study.scenario.acceptance.dspark)
    return Rates.of_lengths(*(1 + study.drafting.gained(count) for count in range(1, study.drafting.block + 1)))


def _workload(study: Study, requests: int, under_way: int) -> Workload:
    """Return a workload for a closed loop, in which only the order of times counts. It begins with `under_way`
    requests, somewhere in their answers. Those have no prompt, so that prefill does not begin with all of them; and
    they end one after the other, so that those who come after them do not come together."""
    section: WorkloadSection = study.scenario.workload
    known = section.input_tokens - section.new_tokens
    shared = (PromptSegment("known", known),) if known else ()
    random = Random(f"under way {study.scenario.seed}")
    lengths = [random.randint(1, section.output_tokens) for _ in range(under_way)]
    first = [Arrival(at=0.0, input_tokens=1, output_tokens=length) for length in lengths]
    answers = [round(section.output_tokens * random.uniform(1 - SPREAD, 1 + SPREAD)) for _ in range(requests)]
    size = section.input_tokens
    later = [Arrival(at=1.0, input_tokens=size, output_tokens=max(1, one), shared=shared) for one in answers]
    return Workload((*first, *later))


def _key(study: Study, name: str, load: int) -> str:
    """Everything that the point depends on: the scenario, the figures of its devices, and the code."""
    figures = {device: numbers.device.model_dump(mode="json") for device, numbers in study.built.numbers.items()}
    losses = {device: str(study.built.losses(device)) for device in study.built.numbers}
    scenario = study.scenario.model_dump(mode="json", exclude={"measured", "predictions", "title", "about"})
    content = json.dumps([scenario, figures, losses, _code(), name, load], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """Return a hash of all code and data that points depend on: points of an older version are computed again."""
    root = Path(__file__).parents[2]
    folders = ("compare/study", "compare/simulator", "compare/published", "hardware")
    files = [file for folder in folders for file in (root / folder).iterdir()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files) if file.is_file())).hexdigest()


def _read(file: Path) -> LoadResult:
    try:
        content = json.loads(file.read_text())
        return LoadResult(**{key: value for key, value in content.items() if key not in ("system", "load")})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}; remove it to have it computed again") from None
