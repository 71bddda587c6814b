"""Runs of `sparkpool bench`, ours or of any endpoint, as systems beside the modelled ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compare.study.economics import Economics
from compare.study.scenario import MeasuredSection, Scenario, WorkloadSection
from compare.study.setups import DeviceUnits
from compare.study.simulated import PERCENTILES
from engine.errors import ConfigError
from hardware.device import Device, Numbers

OFF = 0.10
"""By how much a file's mean prompt and answer may differ from the scenario's."""
SCALED = "time x "  # in the name of an emulated device (local/emulate.py)


@dataclass(frozen=True)
class BenchRun:
    """One file. Latencies in seconds, by percentile."""

    concurrency: float
    throughput: float
    user_rate: float
    ttft: Mapping[str, float]
    end_to_end: Mapping[str, float]
    emulated: str
    """Whose pace it kept, if that of an emulated device."""


@dataclass(frozen=True)
class MeasuredSystem:
    """Of one system. `watts` and `dollars_per_second`: of all its units; None if nothing is known of them."""

    name: str
    runs: Sequence[BenchRun]
    units: float
    source: str
    watts: float | None
    dollars_per_second: float | None

    @property
    def emulated(self) -> str:
        """The device, if one was emulated."""
        return ", ".join(sorted({run.emulated for run in self.runs} - {""}))


def read(scenario: Scenario) -> dict[str, MeasuredSystem]:
    """Every measured system of a scenario. Raises ConfigError, naming the file and what is wrong, for one that cannot
    be read, in which requests failed, that had another workload than the scenario's, or that is no comparison."""
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


def run_of(file: Path, workload: WorkloadSection) -> BenchRun:
    try:
        content = json.loads(file.read_text())
        summary = content["summary"]
        _check(file, content, workload)
        first = [next(at for at, tokens in one["messages"] if tokens) - one["sent"] for one in content["requests"]]
        return BenchRun(
            concurrency=_concurrency(content),
            throughput=float(summary["output_tokens_per_second"]),
            user_rate=1 / float(summary["latency"]["tpot"]["mean"]),
            ttft=_percentiles(first),
            end_to_end=_percentiles([one["ended"] - one["sent"] for one in content["requests"]]),
            emulated=", ".join((summary.get("emulated") or {"devices": []})["devices"]),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: is not what `sparkpool bench --json` writes: {error!r}") from None


def _check(file: Path, content: Any, workload: WorkloadSection) -> None:
    summary, requests = content["summary"], content["requests"]
    if not summary["completed"]:
        raise ConfigError(f"{file}: no request was completed")
    if summary["completed"] < summary["requests"]:
        lost = summary["requests"] - summary["completed"]
        raise ConfigError(f"{file}: {lost} of {summary['requests']} requests failed: it says nothing of the rest")
    emulated = summary.get("emulated")
    if emulated is not None and not emulated["comparable"]:
        raise ConfigError(f"{file}: overruns: the emulated device could not keep its pace, so this is no comparison")
    if scaled := [device for device in (emulated or {"devices": []})["devices"] if SCALED in device]:
        raise ConfigError(f"{file}: {scaled[0]}: its seconds are no seconds of the device; emulate in real time")
    found = {
        "input_tokens": sum(one["prompt_tokens"] for one in requests) / len(requests),
        "output_tokens": sum(tokens for one in requests for _, tokens in one["messages"]) / len(requests),
    }
    for key, mean in found.items():
        wanted = getattr(workload, key)
        if abs(mean / wanted - 1) > OFF:
            raise ConfigError(f"{file}: {mean:.0f} {key} in the mean, workload.{key} is {wanted}: another workload")


def _concurrency(content: Any) -> float:
    """As asked for; of an open loop, requests under way in the mean (Little's law)."""
    asked, summary = content["config"].get("concurrency"), content["summary"]
    if asked is not None:
        return float(asked)
    return float(summary["requests_per_second"]) * float(summary["latency"]["e2e"]["mean"])


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {str(percentile): float(np.percentile(values, percentile)) for percentile in PERCENTILES}
