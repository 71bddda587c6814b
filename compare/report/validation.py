"""Predictions against what has been published and measured, with the error of every point."""

from collections.abc import Iterator, Sequence

from compare.published.checks import (
    CLAIMS,
    FIG7,
    FIG8_BUDGET,
    FIG8_THROUGHPUT,
    HOPPER,
    PAPER,
    RACKS,
    SGLANG,
    WAFER,
    Check,
    checks,
    left_out,
    with_dspark,
)
from compare.published.curves import BASELINE, BUDGET, DSPARK, INTERACTIVITY, THROUGHPUT, figure
from compare.report.document import (
    Axis,
    Basis,
    Block,
    Cell,
    Name,
    Number,
    Paragraph,
    Plot,
    ReportSection,
    Series,
    Table,
)
from compare.study.dspark import PUBLISHED_AUC, PUBLISHED_DSPARK, PUBLISHED_MTP

GOLDEN = "InferenceX golden_al_distribution, SPEED-Bench coding"
METHOD = "predicted from the MTP-1 curve alone (compare/study/dspark.py)"
CONCURRENCY, RATE = Axis("requests under way", "per GPU"), Axis("each user", "tok/s")
ALL, TOKENS = Axis("output", "tok/s/GPU"), Axis("verified", "tokens/request")


def section(own: Sequence[Check] = ()) -> ReportSection:
    """`own`: of this project's cluster (compare/published/own.py), after all that is published."""
    found = [*checks(), *own]
    blocks: list[Block] = [*_method()]
    for number, group in enumerate(dict.fromkeys(check.group for check in found)):
        blocks.append(_table(number, group, [check for check in found if check.group == group]))
        if group in PLOTS:
            blocks.append(PLOTS[group]())
    rows = tuple((Name(left.what), Name(left.why), Name(left.source)) for left in left_out())
    blocks.append(Table("validation_left", "Published, and not predicted", ("what", "why not", "source"), rows))
    return ReportSection("validation", "Predicted against published", tuple(blocks))


def _method() -> Iterator[Paragraph]:
    yield Paragraph.of(
        "How this is done. DSpark's points are predicted from the curve with one next-token draft alone, as it is "
        "read off the paper's figure. A step of it takes accepted length times requests over throughput, with an "
        "accepted length of ",
        Number(PUBLISHED_MTP, "tokens", Basis.MEASURED, GOLDEN),
        ". Steps get longer with the tokens that layers compute, whoever drafts. The gain of DSpark's drafts is "
        "published: up to ",
        Number(PUBLISHED_DSPARK[-1], "tokens", Basis.MEASURED, GOLDEN),
        " a step, and confidences that tell which drafts survive with an area under the curve of ",
        Number(
            sum(PUBLISHED_AUC) / 2,
            "",
            Basis.VENDOR,
            "DSpark paper, middle of its range",
            PUBLISHED_AUC[0],
            PUBLISHED_AUC[1],
        ),
        ". As many drafts are verified as make most tokens per second. No point with DSpark is used.",
    )
    yield Paragraph.of(
        "Elsewhere, steps are counted from operations and bytes (hardware/roofline.py), and what a device gets of "
        "its data sheet is fitted on published points (compare/published/calibration.py). Errors of points that "
        "are marked as fitted say how well the model's shape can follow them. Only the others are predictions. "
        "Published points and where they are from: compare/published. To repeat it: sparkpool compare --validate."
    )
    yield Paragraph.of(
        "What is weak. Parallelism and the ratio of prefill to decode are not published with InferenceX's points: "
        "decode replicas of one size and a prefill pool that just keeps up are assumed. At the steep ends of a "
        "curve a small error of a step's time is a large one of throughput. The paper's two figures differ from "
        "each other there. For DeepSeek on Hopper two losses are fitted on two points, for the wafer one on one.",
        kind="warning",
    )


def _table(number: int, group: str, found: list[Check]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for check in found:
        basis = Basis(check.label)
        low, high = check.span or (None, None)
        rows.append(
            (
                Name(check.what),
                Number(check.predicted, check.unit, Basis.MODELLED, "sparkpool compare --validate"),
                Number(check.published, check.unit, basis, check.source, low, high),
                Number(100 * check.error, "%", Basis.INFERRED, "predicted over published"),
                "fitted" if check.fitted else "predicted",
                Name(check.note) if check.note else None,
            )
        )
    columns = (Name(group), "predicted", "published", "off", "how", "note")
    sources = list(dict.fromkeys(check.source for check in found))
    return Table(f"validation_{number}", TITLES.get(group, group), columns, tuple(rows), (Name("; ".join(sources)),))


def _fig8() -> Plot:
    series = [_published(THROUGHPUT, drafter, "figure 8") for drafter in (BASELINE, DSPARK)]
    points = with_dspark("V4-Flash")
    x, y = tuple(p.concurrency for p in points), tuple(p.throughput for p in points)
    series.append(Series("DSpark, predicted", x, y, Basis.MODELLED, METHOD, dashed=True))
    return Plot("validation_fig_throughput", "Throughput over concurrency", CONCURRENCY, ALL, tuple(series))


def _budget() -> Plot:
    points = with_dspark("V4-Flash")
    x, y = tuple(p.concurrency for p in points), tuple(p.verify_tokens for p in points)
    series = (
        _published(BUDGET, DSPARK, "figure 8"),
        Series("DSpark, predicted", x, y, Basis.MODELLED, METHOD, dashed=True),
    )
    return Plot("validation_fig_verified", "Verified tokens over concurrency", CONCURRENCY, TOKENS, series)


def _fig7() -> Plot:
    series = [_published(INTERACTIVITY, drafter, "figure 7") for drafter in (BASELINE, DSPARK)]
    points = with_dspark("V4-Flash")
    x, y = tuple(p.user_rate for p in points), tuple(p.throughput for p in points)
    series.append(Series("DSpark, predicted", x, y, Basis.MODELLED, METHOD, dashed=True))
    return Plot("validation_fig_rate", "Throughput over each user's rate", RATE, ALL, tuple(series))


def _published(name: str, drafter: str, where: str) -> Series:
    x, y = zip(*figure(name, "V4-Flash", drafter), strict=True)
    return Series(f"{drafter}, published", x, y, Basis.VENDOR, PAPER.format(where))


PLOTS = {FIG8_THROUGHPUT: _fig8, FIG8_BUDGET: _budget, FIG7: _fig7}
TITLES = {
    FIG8_THROUGHPUT: "DSpark's throughput over concurrency",
    FIG8_BUDGET: "DSpark's verified tokens over concurrency",
    FIG7: "DSpark's throughput over each user's rate",
    CLAIMS: "What the DSpark paper says",
    RACKS["gb300"][0]: "InferenceX, Blackwell Ultra racks, without speculation",
    RACKS["gb200"][0]: "InferenceX, Blackwell racks, without speculation",
    RACKS["gb300"][1]: "InferenceX, Blackwell Ultra racks, with next-token drafts",
    RACKS["gb200"][1]: "InferenceX, Blackwell racks, with next-token drafts",
    SGLANG: "Prefill in the same replica",
    HOPPER: "DeepSeek on Hopper",
    WAFER: "A wafer",
}
"""Of groups; titles have no digits."""
