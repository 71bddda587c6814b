"""The report as one HTML file, which loads nothing: plotly.js is in it. Needs plotly."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compare.report.document import Basis, Block, Document, Heat, Paragraph, Plot, Table, Tornado, Waterfall
from compare.report.figures import figure, height
from compare.report.files import as_json
from compare.report.style import COLOURS, NOTHING, Look, all_drawn, empty, looks, sentence, titled

LABELS = {
    Basis.VENDOR: ("ve", "whoever sells it says so"),
    Basis.MEASURED: ("me", "somebody measured it"),
    Basis.ESTIMATE: ("es", "an analyst or the press thinks so"),
    Basis.INFERRED: ("in", "arithmetic on other figures, or a conclusion from them"),
    Basis.UNVERIFIED: ("uv", "one weak source, or from memory"),
    Basis.UNKNOWN: ("uk", "nobody has said: somewhere in a range"),
    Basis.ASSUMED: ("as", "the scenario says so"),
    Basis.MODELLED: ("mo", "worked out from operations, bytes and latencies"),
    Basis.SIMULATED: ("si", "the modelled steps under a workload, with queues"),
    Basis.EMULATED: ("em", "measured at a modelled pace"),
}
"""The mark that a number has in the page, and what it means."""
FOLDED = ("effects-", "device-")
"""How the keys of tables begin that hold the detail of what is beside them."""
MOST_ROWS = 24
"""Of a table that is open from the start."""


def page(document: Document) -> str:
    """The whole file. Numbers in it are those of `as_json`, by ID."""
    from plotly.offline import get_plotlyjs

    report = as_json(document)
    series_looks = looks(document)
    blocks = [block for block in document.blocks if not isinstance(block, Paragraph | Table)]
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
        extra={block.key: _extra(block, series_looks) for block in blocks},
        sources=partial(_sources, report["numbers"]),
        figures=_script_data({block.key: figure(block, series_looks) for block in blocks if not empty(block)}),
        plotlyjs=Markup(get_plotlyjs().replace("</script", r"<\/script")),
    )


def _labels(document: Document) -> list[str]:
    """Those that some number or series has, in the order of `Basis`."""
    found = {number["label"] for number in as_json(document)["numbers"].values()}
    for block in document.blocks:
        if isinstance(block, Plot):
            found |= {str(series.basis) for series in block.series}
        elif isinstance(block, Heat):
            found.add(str(block.basis))
    return [str(basis) for basis in Basis if str(basis) in found]


def _extra(block: Plot | Heat | Waterfall | Tornado, series_looks: dict[str, Look]) -> dict[str, Any]:
    """What the template needs to know of a plot and the JSON does not have."""
    return {
        "height": height(block),
        "legend": _legend(block, series_looks),
        "axes": ", ".join(titled(axis) for axis in _axes(block)),
        "all_drawn": all_drawn(block),
        "empty": empty(block),
    }


def _folded(table: Table) -> bool:
    """Whether only its title is shown until somebody opens it."""
    return table.key.startswith(FOLDED) or len(table.rows) > MOST_ROWS


def _lines(parts: list[Any]) -> list[list[Any]]:
    """Of a verdict, each sentence on a line. The first ends at a colon, if there is one: what is said, before why."""
    found: list[list[Any]] = [[]]
    for part in parts:
        before = found[-1][-1] if found[-1] else ""
        if not isinstance(part, str):
            found[-1].append(part)
        elif len(found) == 1 and ": " in part:
            said, why = part.split(": ", 1)
            found[-1].append(said)
            found.append([sentence(why)])
        elif isinstance(before, str) and before.endswith(".") and part[:1] == " " and part[1:2].isupper():
            found.append([part[1:]])
        else:
            found[-1].append(part)
    return found


def _axes(block: Block) -> list[Any]:
    return [getattr(block, name) for name in ("x", "y", "z") if hasattr(block, name)]


def _legend(block: Block, series_looks: dict[str, Look]) -> list[dict[str, Any]]:
    if isinstance(block, Tornado):
        ends = ((1, "at its lowest"), (0, "at its highest"))
        return [{"name": name, "colour": colour, "glyph": "■"} for colour, name in ends]
    if not isinstance(block, Plot):
        return []
    found = []
    for series in block.series:
        look = series_looks[series.name]
        glyph = ("▨" if series.dashed else "■") if series.style == "bars" else look.glyph
        glyph = f"╌{glyph}╌" if series.dashed and series.style == "line" else glyph
        found.append({"name": series.name, "colour": look.colour, "glyph": glyph})
    return found


def _sources(numbers: dict[str, Any], keys: list[str]) -> list[tuple[str, str]]:
    """(label, source) of these numbers, each once."""
    return list(dict.fromkeys((numbers[key]["label"], numbers[key]["source"]) for key in keys))


def _script_data(figures: dict[str, Any]) -> Markup:
    """JSON that cannot end its script."""
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))
