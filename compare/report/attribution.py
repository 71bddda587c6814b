"""Section: what is due to what, step by step."""

from compare.report.document import (
    Axis,
    Cell,
    Name,
    Paragraph,
    Section,
    Table,
    Waterfall,
)
from compare.report.numbers import assumed, modelled
from compare.study import Study, joules


def attribution(study: Study) -> Section:
    """Each step of the scenario has one thing more than the one before."""
    speed = study.scenario.decide_at
    found = [(name, study.best(name, speed)) for name in study.scenario.steps]
    steps = tuple((name, modelled(0.0 if best is None else 1e6 / joules(best), "tok/s/MW")) for name, best in found)
    rows: list[tuple[Cell, ...]] = []
    before: float | None = None
    for name, best in found:
        value = None if best is None else 1e6 / joules(best)
        factor = modelled(value / before, "times") if value and before else None
        rows.append((Name(name), None if value is None else modelled(value, "tok/s/MW"), factor))
        before = value
    table = Table("steps", "The same in numbers", ("system", "gives", "over the one before"), tuple(rows))
    about = Paragraph(
        (
            "Output tokens per second of a megawatt at ",
            assumed(speed, "tok/s of each user"),
            ", one thing more in each step. Zero is a system that is too slow for that: what comes after it is no "
            "factor, it is the difference between possible and impossible.",
        )
    )
    axis = Axis(f"output tokens per second of a megawatt ({study.scenario.power})", "tok/s/MW")
    waterfall = Waterfall("waterfall", "What is due to what", axis, steps)
    return Section("attribution", "What is due to what", (about, waterfall, table))
