"""Section: every figure that results depend on, and what the scenario assumes."""

from compare.report.document import Basis, Block, Cell, Name, Number, Paragraph, ReportSection, Table
from compare.report.numbers import assumed, key_of, published, sourced
from compare.study.scenario import LOSSES, AcceptanceSection, LossesSection, middle
from compare.study.study import Study
from hardware.figure import Figure


def assumptions(study: Study) -> ReportSection:
    """Every figure of every device that a result rests on, losses, and what the scenario assumes."""
    blocks: list[Block] = [_scenario(study), _losses(study)]
    study.rests_on  # noqa: B018  all figures are asked for, so that they are in `used`
    for device, numbers in study.built.numbers.items():
        assumed_here = study.scenario.devices[device].assumed if device in study.scenario.devices else {}
        rows = tuple(_figure(name, figure, assumed_here.get(name)) for name, figure in sorted(numbers.used.items()))
        columns = ("figure", "value", "source")
        title = "figures that results depend on"
        blocks.append(Table(f"device-{key_of(device)}", title, columns, rows, subject=numbers.device.name))
        blocks += [Paragraph.of(Name(note)) for note in numbers.device.notes]
    return ReportSection("assumptions", "Assumptions", tuple(blocks))


def _figure(name: str, figure: Figure, taken: float | None) -> tuple[Cell, ...]:
    value = published(figure) if taken is None else assumed(taken, figure.unit)
    return Name(name), value, sourced(figure.source)


def _losses(study: Study) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for device in study.built.numbers:
        if device not in study.scenario.devices:
            continue
        section, losses = study.scenario.devices[device].losses, study.built.losses(device)
        fitted = isinstance(section, str)
        basis = Basis.INFERRED if fitted else Basis.ASSUMED
        values = (losses.compute, losses.memory, losses.network, 1e6 * losses.layer_seconds, 1e6 * losses.step_seconds)
        cells: list[Cell] = []
        for name, value in zip(LOSSES, values, strict=True):
            low, high = _range(section, name) if isinstance(section, LossesSection) else (None, None)
            kind = Basis.UNKNOWN if low is not None else basis
            cells.append(Number(value, "us" if name.endswith("_us") else "", kind, losses.source, low, high))
        rows.append((Name(device), *cells, Name(losses.source)))
    columns = ("device", "of arithmetic", "of bandwidth", "of network", "each layer", "each step", "where from")
    note = ("Shares of the data sheet's figures, and times that do not depend on the work.",)
    return Table("losses", "Shares of a device's figures that steps get", columns, tuple(rows), note)


def _range(section: LossesSection, name: str) -> tuple[float | None, float | None]:
    value = getattr(section, name)
    return value if isinstance(value, tuple) else (None, None)


def _scenario(study: Study) -> Table:
    scenario = study.scenario
    acceptance = scenario.acceptance
    rows: list[tuple[Cell, ...]] = [
        ("prompt", assumed(scenario.workload.input_tokens, "tokens")),
        ("of it in a prefill replica's cache", assumed(100 * scenario.workload.cached_share, "%")),
        ("answer", assumed(scenario.workload.output_tokens, "tokens")),
        ("all traffic", assumed(scenario.traffic, "output tok/s")),
        ("of the prefill pool's capacity, used", assumed(100 * scenario.utilisation, "%")),
        ("energy, where cost follows from price", assumed(scenario.energy, "$/kWh")),
        ("tokens of a step with one next-token draft", _published(acceptance.mtp, acceptance)),
        ("how well confidences predict acceptance (area under the curve)", _published(acceptance.auc, acceptance)),
        ("layers of DSpark's drafter", _published(acceptance.layers, acceptance)),
    ]
    for length in acceptance.dspark:
        rows.append(("tokens of a step with one DSpark draft more", _published(length, acceptance)))
    capital = scenario.capital
    if isinstance(capital, tuple):
        why = "from price and owning cost of devices that have both, energy left out"
        rows.append(("owning what costs a million", Number(middle(capital), "$/h", Basis.UNKNOWN, why, *capital)))
    else:
        rows.append(("owning what costs a million", assumed(capital, "$/h")))
    return Table("scenario", "What the scenario assumes", ("what", "value"), tuple(rows))


def _published(value: float, acceptance: AcceptanceSection) -> Number:
    return Number(value, "", Basis(acceptance.label), acceptance.source)
