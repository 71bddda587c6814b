"""Predictions against published points: DSpark from a curve with MTP-1, and steps from fitted losses.

Goals are for DSpark's curve alone, which is predicted without a single point of it. Of everything else the errors are
reported as they are.
"""

import time

from bench.shape import Report
from compare.checks import FIG8_BUDGET, FIG8_THROUGHPUT, Check, left_out
from compare.validation import checks

THROUGHPUT_OFF, TOKENS_OFF = 0.05, 0.4


def run(report: Report) -> None:
    report.ceiling("what figures can be read off to, per cent", 1.0)
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
            what = f"throughput with DSpark, off, {check.what}"
            report.goal(what, abs(check.error), THROUGHPUT_OFF, "", at_most=True)
        if check.group == FIG8_BUDGET:
            off = abs(check.predicted - check.published)
            report.goal(f"verified tokens, off, {check.what}", off, TOKENS_OFF, "tokens", at_most=True)


def _row(check: Check) -> dict[str, object]:
    return {
        "what": check.what,
        "predicted": check.predicted,
        "published": check.published,
        "unit": check.unit,
        "off": check.error,
        "fitted": check.fitted,
    }
