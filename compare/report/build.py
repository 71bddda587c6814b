"""The way from a scenario's file to its report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compare.published.checks import Check
from compare.published.own import own_checks
from compare.report import assumptions, attribution, break_even, claims, curves, latency, verdicts
from compare.report.document import ReportDocument, ReportSection
from compare.report.files import check_library, write
from compare.report.validation import section as validation
from compare.study import measured as runs
from compare.study.measured import MeasuredSystem
from compare.study.scenario import Scenario
from compare.study.simulated import LoadResult, served, wanted
from compare.study.study import Study
from compare.study.verdict import Verdict, verdict
from engine.errors import ConfigError

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Comparison:
    """A scenario, of which all devices, models, files and libraries exist."""

    file: Path
    study: Study
    measured: dict[str, MeasuredSystem]
    own: list[Check]
    """Predictions of this project's own cluster."""

    @classmethod
    def of(cls, file: Path) -> "Comparison":
        """Read a scenario and all that it names. Raise ConfigError for any mistake before anything is computed."""
        check_library()
        scenario = Scenario.load(file)
        study = Study.of(scenario)
        for name, choices in study.built.setups.items():
            if not choices:
                tokens = study.built.longest
                raise ConfigError(f"systems.{name}: no replica has room for one request of {tokens} tokens")
            parts = [part for setup in choices for part in (*setup.parts, setup.prefill_part) if part is not None]
            study.economics.watts(parts)
            if name in (*scenario.contenders, *scenario.contenders.values()):
                study.economics.dollars_per_second(parts)
        own = [check for predictions in scenario.predictions for check in own_checks(predictions)]
        return cls(file, study, runs.read(scenario), own)

    def run(self, folder: Path, progress: Progress) -> ReportDocument:
        """Compute what is not in `folder` yet, and write the report there."""
        points: dict[tuple[str, int], LoadResult] = {}
        total = len(wanted(self.study)) if self.study.scenario.systems else 0
        if total:
            for number, (name, load, one) in enumerate(served(self.study, folder / "points"), start=1):
                points[name, load] = one
                progress("simulating", number, total)
        found = []
        asked = self.study.rivals
        for number, rivals in enumerate(asked, start=1):
            found.append(verdict(self.study, rivals))
            progress("verdicts", number, len(asked))
        sections = []
        parts = list(self._parts(points, found))
        for number, part in enumerate(parts, start=1):
            sections += part()
            progress("sections", number, len(parts))
        about = {
            "scenario": str(self.file.name),
            "about": self.study.scenario.about,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        document = ReportDocument(self.study.scenario.title, about, tuple(sections))
        write(document, folder)
        return document

    def _parts(
        self, points: dict[tuple[str, int], LoadResult], found: Sequence[Verdict]
    ) -> Iterator[Callable[[], list[ReportSection]]]:
        study, measured = self.study, self.measured
        if found:
            yield lambda: [verdicts.verdicts(study, found)]
        yield lambda: curves.sections(study, measured)
        if study.scenario.steps:
            yield lambda: [attribution.attribution(study)]
        if found:
            yield lambda: [
                break_even.break_even(study, found),
                break_even.smallest(study),
                verdicts.sensitivity(found),
            ]
        yield lambda: [latency.latency(study, points, measured)]
        if study.scenario.systems:
            yield lambda: [claims.section(study), assumptions.assumptions(study)]
        if study.scenario.systems or self.own:
            yield lambda: [validation(self.own)]
