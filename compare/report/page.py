"""The report as one HTML file, which loads nothing: its charts are in it as SVG. Needs matplotlib."""

from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compare.report.charts import svgs
from compare.report.document import Basis, Chart, Heat, NumberJson, Paragraph, Plot, ReportDocument, Table, Tornado
from compare.report.files import as_json
from compare.report.style import ABOVE, BELOW, COLOURS, NOTHING, Style, all_drawn, empty, sentence, styles

LABELS = {
    Basis.VENDOR: ("ve", "stated by its vendor"),
    Basis.MEASURED: ("me", "measured on the real system"),
    Basis.ESTIMATE: ("es", "estimated by analysts or the press"),
    Basis.INFERRED: ("in", "arithmetic on other figures, or a conclusion from them"),
    Basis.UNVERIFIED: ("uv", "one weak source, or from memory"),
    Basis.UNKNOWN: ("uk", "not published: somewhere in a range"),
    Basis.ASSUMED: ("as", "the scenario says so"),
    Basis.MODELLED: ("mo", "worked out from operations, bytes and latencies"),
    Basis.SIMULATED: ("si", "the modelled steps under a workload, with queues"),
    Basis.EMULATED: ("em", "measured at a modelled pace"),
}
"""The mark that a number has in the page, and what it means."""
FOLDED = ("effects-", "device-")
"""Prefixes of the keys of tables that hold details; they are folded at first."""
MAX_OPEN_ROWS = 24
"""Longer tables are folded at first, too."""


def page(document: ReportDocument) -> str:
    """Return the whole file. Numbers in it are those of `as_json`, by ID."""
    report, found = as_json(document), styles(document)
    charts = [block for block in document.blocks if not isinstance(block, Paragraph | Table)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        labels={str(basis): {"mark": mark, "means": means} for basis, (mark, means) in LABELS.items()},
        used=_labels(document),
        colours=COLOURS,
        nothing=NOTHING,
        sentence=sentence,
        lines=_lines,
        folded={block.key for block in document.blocks if isinstance(block, Table) and _folded(block)},
        extra={chart.key: _extra(chart, found) for chart in charts},
        sources=partial(_sources, report["numbers"]),
    )


def _labels(document: ReportDocument) -> list[str]:
    """Return the labels that some number or series has, in the order of `Basis`."""
    found = {number["label"] for number in as_json(document)["numbers"].values()}
    for block in document.blocks:
        if isinstance(block, Plot):
            found |= {str(series.basis) for series in block.series}
        elif isinstance(block, Heat):
            found.add(str(block.basis))
    return [str(basis) for basis in Basis if str(basis) in found]


def _extra(chart: Chart, found: dict[str, Style]) -> dict[str, object]:
    """Return what the template needs to know of a chart and the JSON does not have."""
    return {
        "svgs": [] if empty(chart) else [Markup(svg) for svg in svgs(chart, found)],
        "legend": _legend(chart, found),
        "all_drawn": all_drawn(chart),
    }


def _folded(table: Table) -> bool:
    """Tell whether only its title is shown until a reader opens it."""
    return table.key.startswith(FOLDED) or len(table.rows) > MAX_OPEN_ROWS


def _lines(parts: list[object]) -> list[list[object]]:
    """Put each sentence of a verdict on a line. The first line ends at a colon, if there is one: the verdict, before
    why."""
    found: list[list[object]] = [[]]
    for part in parts:
        before = found[-1][-1] if found[-1] else ""
        if not isinstance(part, str):
            found[-1].append(part)
        elif len(found) == 1 and ": " in part:
            verdict, why = part.split(": ", 1)
            found[-1].append(verdict)
            found.append([sentence(why)])
        elif isinstance(before, str) and before.endswith(".") and part[:1] == " " and part[1:2].isupper():
            found.append([part[1:]])
        else:
            found[-1].append(part)
    return found


def _legend(chart: Chart, found: dict[str, Style]) -> list[dict[str, object]]:
    if isinstance(chart, Tornado):
        ends = ((BELOW, "at its lowest"), (ABOVE, "at its highest"))
        return [{"name": name, "colour": colour, "glyph": "■"} for colour, name in ends]
    legend = []
    for series in chart.series if isinstance(chart, Plot) else ():
        style = found[series.name]
        glyph = ("▨" if series.dashed else "■") if series.style == "bars" else style.glyph
        glyph = f"╌{glyph}╌" if series.dashed and series.style == "line" else glyph
        legend.append({"name": series.name, "colour": style.colour, "glyph": glyph})
    return legend


def _sources(numbers: dict[str, NumberJson], keys: list[str]) -> list[tuple[str, str]]:
    """(label, source) of these numbers, each once."""
    return list(dict.fromkeys((numbers[key]["label"], numbers[key]["source"]) for key in keys))
