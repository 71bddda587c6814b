"""Predictions against published points: DSpark from a curve with MTP-1, and steps from fitted losses.

Only DSpark's curve has goals: it is predicted without using any point of it. All other errors are reported without a
goal. Then each shipped scenario's report is made from nothing and timed.
"""

import tempfile
import time
from pathlib import Path

from bench.shape import BenchReport
from compare.published.checks import FIG8_BUDGET, FIG8_THROUGHPUT, Check, checks, left_out
from compare.report.build import Comparison

THROUGHPUT_OFF, TOKENS_OFF = 0.05, 0.4
SCENARIOS = Path(__file__).parent.parent / "deploy" / "scenarios"
MAX_SECONDS = 300.0


def run(report: BenchReport) -> None:
    report.ceiling("precision of values read off figures, per cent", 1.0)
    began = time.perf_counter()
    found = checks()
    took = time.perf_counter() - began
    for group in dict.fromkeys(check.group for check in found):
        report.table(group, [_row(check) for check in found if check.group == group])
    for left in left_out():
        report.note(f"not predicted: {left.what}: {left.why}")
    report.note(f"all fits and predictions took {took:.0f} s on one core")
    for check in found:
        if check.group == FIG8_THROUGHPUT:
            what = f"throughput with DSpark, error, {check.what}"
            report.goal(what, abs(check.error), THROUGHPUT_OFF, "", at_most=True)
        if check.group == FIG8_BUDGET:
            off = abs(check.predicted - check.published)
            report.goal(f"verified tokens, error, {check.what}", off, TOKENS_OFF, "tokens", at_most=True)
    files = [SCENARIOS / "tiny.yaml"] if report.options.quick else sorted(SCENARIOS.glob("*.yaml"))
    report.table("reports", [_report(file) for file in files])
    for row in report.figures["reports"]:
        report.goal(f"report of {row['scenario']}", row["seconds"], MAX_SECONDS, "s", at_most=True)


def _report(file: Path) -> dict[str, object]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        document = Comparison.of(file).run(Path(folder), lambda what, done, of: None)
    seconds = time.perf_counter() - began
    return {"scenario": file.stem, "seconds": seconds, "sections": len(document.sections)}


def _row(check: Check) -> dict[str, object]:
    return {
        "what": check.what,
        "predicted": check.predicted,
        "published": check.published,
        "unit": check.unit,
        "off": check.error,
        "fitted": check.fitted,
    }
