"""Section: what is due to what, step by step."""

from compare.report.document import (
    Axis,
    Block,
    Cell,
    Name,
    Number,
    Paragraph,
    ReportSection,
    Table,
    TextPart,
    Waterfall,
)
from compare.report.numbers import assumed, key_of, modelled
from compare.study.study import Study


def attribution(study: Study) -> ReportSection:
    """Show the steps of the scenario, each of which adds one change."""
    about = Paragraph.of(
        "Output tokens per second of a megawatt; each step adds one change. Zero means that a system is too slow: "
        "the step after it is no factor, but the difference between possible and impossible. Near a system's "
        "highest speed, its factor says more about that limit than about the change. Systems with one pool are in "
        "steady state: their figures do not include how prompts delay decode steps, which is why there are two "
        "pools."
    )
    speeds = sorted({*study.scenario.decide_at, *study.scenario.interactivity})
    blocks: list[Block] = [about]
    blocks += [_waterfall(study, speed) for speed in study.scenario.decide_at]
    columns: tuple[TextPart, ...] = ("system", *(assumed(speed, "tok/s of each user") for speed in speeds))
    values = [[_per_megawatt(study, name, speed) for speed in speeds] for name in study.scenario.steps]
    rows: list[tuple[Cell, ...]] = []
    for name, own, before in zip(study.scenario.steps, values, [None, *values], strict=False):
        cells = [_factor(value, None if before is None else before[n]) for n, value in enumerate(own)]
        rows.append((Name(name), *cells))
    note = ("Empty: this one or the one before is too slow, or it is the first.",)
    blocks.append(Table("steps", "Factor over the step before, at each speed", columns, tuple(rows), note))
    return ReportSection("attribution", "What is due to what", tuple(blocks))


def _waterfall(study: Study, speed: float) -> Waterfall:
    steps = tuple((name, modelled(_per_megawatt(study, name, speed), "tok/s/MW")) for name in study.scenario.steps)
    axis = Axis(f"output tokens per second of a megawatt ({study.scenario.power})", "tok/s/MW")
    key = f"waterfall-{key_of(f'{speed:g}')}"
    return Waterfall(key, "what is due to what", axis, steps, f"{speed:g} tok/s of each user")


def _per_megawatt(study: Study, name: str, speed: float) -> float:
    best = study.best(name, speed)
    return 0.0 if best is None else best.per_megawatt


def _factor(value: float, before: float | None) -> Number | None:
    return modelled(value / before, "times") if value and before else None
