"""Runs of `sparkpool bench`, ours or of any endpoint, as systems beside the modelled ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare.simulator.replay import BenchJson, SummaryJson, bench_run
from compare.study.economics import Economics
from compare.study.scenario import MeasuredSection, Scenario, WorkloadSection
from compare.study.setups import DeviceUnits
from compare.study.simulated import PERCENTILES
from engine.errors import ConfigError
from hardware.device import Device, Numbers
from policy.percentile import percentile

MAX_DEVIATION = 0.10
"""The largest difference of a file's mean prompt or answer from the scenario's, as a share of that."""
SCALED = "time x "  # in the name of an emulated device (local/emulate.py)


@dataclass(frozen=True)
class MeasuredRun:
    """The figures of one file of `sparkpool bench`. Latencies are in seconds, by percentile."""

    concurrency: float
    throughput: float
    user_rate: float
    ttft: Mapping[str, float]
    end_to_end: Mapping[str, float]
    emulated: str
    """The emulated device whose pace it kept; empty if none."""


@dataclass(frozen=True)
class MeasuredSystem:
    """A system that was measured. `watts` and `dollars_per_second` are those of all its units; None if unknown."""

    name: str
    runs: Sequence[MeasuredRun]
    units: float
    source: str
    watts: float | None
    dollars_per_second: float | None

    @property
    def emulated(self) -> str:
        """The emulated devices; empty if there were none."""
        return ", ".join(sorted({run.emulated for run in self.runs} - {""}))


def read(scenario: Scenario) -> dict[str, MeasuredSystem]:
    """Return every measured system of a scenario. Raise ConfigError, which names the file and what is wrong, for one
    that cannot be read, in which requests failed, that had another workload than the scenario's, or whose emulated
    device was too slow for a comparison."""
    economics = Economics.of(scenario)
    return {name: _measured(name, section, scenario, economics) for name, section in scenario.measured.items()}


def _measured(name: str, section: MeasuredSection, scenario: Scenario, economics: Economics) -> MeasuredSystem:
    watts = cost = None
    if section.device:
        try:
            part = DeviceUnits(Numbers(Device.load(section.device)), section.units)
            watts = economics.watts([part])
            if part.numbers.has("cost") or part.numbers.has("price"):
                cost = economics.dollars_per_second([part])
        except ConfigError as error:
            raise ConfigError(f"measured.{name}.device: {error}") from None
    runs = sorted((run_of(file, scenario.workload) for file in section.files), key=lambda run: run.concurrency)
    files = ", ".join(file.name for file in section.files)
    return MeasuredSystem(name, runs, section.units, f"sparkpool bench: {files}. {section.note}".strip(), watts, cost)


def run_of(file: Path, workload: WorkloadSection) -> MeasuredRun:
    with bench_run(file) as run:
        summary, requests = run["summary"], run["requests"]
        emulated = summary.get("emulated")
        _check(summary, workload)
        first = [next(at for at, tokens in one["messages"] if tokens) - one["sent"] for one in requests]
        return MeasuredRun(
            concurrency=_concurrency(run),
            throughput=float(summary["output_tokens_per_second"]),
            user_rate=1 / float(summary["latency"]["tpot"]["mean"]),
            ttft=_percentiles(first),
            end_to_end=_percentiles([one["ended"] - one["sent"] for one in requests]),
            emulated=", ".join(emulated["devices"]) if emulated else "",
        )


def _check(summary: SummaryJson, workload: WorkloadSection) -> None:
    """Raise ValueError for a run that cannot be compared with the scenario's systems."""
    if not summary["completed"]:
        raise ValueError("no request was completed")
    if summary["completed"] < summary["requests"]:
        lost = summary["requests"] - summary["completed"]
        raise ValueError(f"{lost} of {summary['requests']} requests failed: it says nothing of the rest")
    emulated = summary.get("emulated")
    if emulated and emulated["devices"] and not emulated["comparable"]:
        raise ValueError("overruns: the emulated device could not keep its pace, so this is no comparison")
    if scaled := [device for device in (emulated["devices"] if emulated else ()) if SCALED in device]:
        raise ValueError(f"{scaled[0]}: its seconds are no seconds of the device; emulate in real time")
    for key, mean, expected in (
        ("input_tokens", float(summary["mean_prompt_tokens"]), workload.input_tokens),
        ("output_tokens", float(summary["mean_output_tokens"]), workload.output_tokens),
    ):
        if abs(mean / expected - 1) > MAX_DEVIATION:
            raise ValueError(f"{mean:.0f} {key} in the mean, workload.{key} is {expected}: another workload")


def _concurrency(run: BenchJson) -> float:
    """Return the concurrency that was asked for; of an open loop, the mean number of requests under way (Little's
    law)."""
    asked, summary = run["config"].get("concurrency"), run["summary"]
    if asked is not None:
        return float(asked)
    return float(summary["requests_per_second"]) * float(summary["latency"]["e2e"]["mean"])


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {str(percent): percentile(values, percent) for percent in PERCENTILES}
