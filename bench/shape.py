"""What all benchmarks share: first the ceiling, then warm-up, alternate rounds, medians, goals, and a result file.

A benchmark is a module of `bench/` with `run(report)`. Its figures go through the `BenchReport`, which prints them and
writes `NAME.json`. A missed goal is a result, not a failure; a wrong token or byte raises.
"""

import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from bench.console import TableRow, bar, print_table
from bench.machine import machine, versions

RESULTS = Path(__file__).parent / "results"
RoundInput = TypeVar("RoundInput")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a benchmark run. `quick` is for tests: it takes seconds, and its figures mean nothing."""

    device: torch.device
    threads: int
    quick: bool = False
    out: Path = RESULTS


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that must be at least `target`, or at most `target` if `at_most`."""

    what: str
    figure: float
    target: float
    unit: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.figure <= self.target if self.at_most else self.figure >= self.target

    def __str__(self) -> str:
        bound = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "missed"
        return f"GOAL {self.what}: {self.figure:.3g} {self.unit} against {bound} {self.target:g} {self.unit}: {verdict}"


@dataclass(frozen=True)
class Samples:
    """The seconds of each side of a comparison, in the order of the rounds."""

    seconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def speed_up(self, side: str, over: str) -> float:
        """Return how many times as fast `side` is as `over`: the median of the ratios within a round, because a shared
        machine drifts from round to round.
        """
        pairs = zip(self.seconds[side], self.seconds[over], strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


@dataclass
class BenchReport:
    """Collects and prints the results of one benchmark."""

    name: str
    options: BenchOptions
    ceilings: dict[str, float] = field(default_factory=dict)
    figures: dict[str, list[TableRow]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def ceiling(self, what: str, figure: float) -> None:
        """Record what is physically possible; `what` names the unit."""
        self.ceilings[what] = figure
        print(f"ceiling: {what}: {figure:,.4g}", flush=True)

    def note(self, text: str) -> None:
        """Record a remark that a reader of the figures needs."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)

    def alternately(
        self, what: str, sides: Mapping[str, Callable[[RoundInput], float]], rounds: Sequence[RoundInput]
    ) -> Samples:
        """Run every side on every round and collect the seconds that they return. The first round is a warm-up and is
        not counted. Each round begins with another side.
        """
        assert self.ceilings, "state the ceiling first"
        assert len(rounds) > 1, "the first round is the warm-up"
        names = list(sides)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        with bar(what, len(rounds) * len(names)) as progress:
            for number, given in enumerate(rounds):
                shift = number % len(names)
                for name in names[shift:] + names[:shift]:
                    seconds[name].append(sides[name](given))
                    progress.advance()
        return Samples({name: values[1:] for name, values in seconds.items()})

    def table(self, title: str, rows: list[TableRow]) -> None:
        """Print figures and keep them for the result file."""
        self.figures[title] = rows
        print_table(title, rows)

    def goal(self, what: str, figure: float, target: float, unit: str, at_most: bool = False) -> None:
        self.goals.append(Goal(what=what, figure=figure, target=target, unit=unit, at_most=at_most))

    def close(self) -> Path:
        """Write the result file and print a line for each goal."""
        content = {
            "benchmark": self.name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "quick": self.options.quick,
            "threads": self.options.threads,
            "machine": machine(self.options.device),
            "versions": versions(),
            "ceilings": self.ceilings,
            "figures": self.figures,
            "notes": self.notes,
            "goals": [asdict(goal) | {"met": goal.met} for goal in self.goals],
        }
        self.options.out.mkdir(parents=True, exist_ok=True)
        file = self.options.out / f"{self.name}.json"
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        for goal in self.goals:
            print(goal, flush=True)
        return file


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
