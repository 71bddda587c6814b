"""A made-up report with every kind of block, and with names that are hostile to HTML, to SVG and to matplotlib."""

import math

from compare.report.document import (
    Axis,
    Basis,
    Heat,
    Mark,
    Name,
    Number,
    Paragraph,
    Plot,
    ReportDocument,
    ReportSection,
    Series,
    SourceLink,
    Table,
    Tornado,
    Waterfall,
)

HOSTILE = "</script><script>alert('1')</script> \"$x_1$\" & <b>"
SCENARIO = "scenario.yaml, key `price`, set 2026-11-20"
STEPS = "modelled: bytes over bandwidth, 61 layers"


def number(value: float, unit: str = "tok/s", basis: Basis = Basis.MODELLED, source: str = STEPS) -> Number:
    return Number(value, unit, basis, source)


def ranged(value: float, low: float, high: float, unit: str = "tok/s") -> Number:
    return Number(value, unit, Basis.SIMULATED, "simulated over every unknown, 400 requests", low, high)


def document() -> ReportDocument:
    sections = (_summary(), _speed(), _money())
    about = {"Scenario": "chat-8k.yaml", "Date": "2026-11-27", "Version": "0.1.0", "Seed": "7", "Command": HOSTILE}
    return ReportDocument("DeepSeek-V4 on 8 × B200, against CS-3", about, sections)


def _summary() -> ReportSection:
    said = (
        "With software alone, one answer comes at ",
        ranged(412, 310, 640),
        " on ",
        Name("8 × B200"),
        "; dedicated hardware does ",
        number(
            2100, basis=Basis.VENDOR, source="Cerebras, press release of 2026-08-28: https://example.com/cs3?a=1&b=2"
        ),
        ". The gap of ",
        number(5.1, "×"),
        " does not close.",
    )
    return ReportSection(
        "summary",
        "What came of it",
        (
            Paragraph(said, "verdict"),
            Paragraph(
                (
                    "The time of a hop is ",
                    number(3.2, "µs", Basis.UNKNOWN, "nobody publishes it: 1 to 10 µs"),
                    " here. If it is at its highest, the order of the two systems changes.",
                ),
                "warning",
            ),
            Paragraph(
                (
                    "Both serve the same requests. Prices are those of ",
                    SourceLink("GPU specifications 2026", "https://example.com/gpu-specs?x=1&y=2"),
                    ", and what a system costs without load is ",
                    number(math.inf, "$/M", Basis.MODELLED),
                    ". A loss would be ",
                    number(-12.5, "$", Basis.ASSUMED, SCENARIO),
                    ".",
                )
            ),
            _systems(),
        ),
    )


def _systems() -> Table:
    rows = (
        (
            Name("8 × B200, DSpark"),
            ranged(412, 310, 640),
            number(48000),
            ranged(0.42, 0.31, 0.66, "$/M"),
            number(17.4, "kW", Basis.ESTIMATE, "SemiAnalysis, constants.ts"),
            SourceLink("specification", "https://example.com/b200"),
        ),
        (
            Name("CS-3"),
            number(2100, basis=Basis.VENDOR, source="Cerebras, 2026-08-28"),
            None,
            number(6.2, "$/M", Basis.INFERRED, "list price over tokens, 2026"),
            number(23, "kW", Basis.UNVERIFIED, "one forum post, 2025"),
            "as sold",
        ),
        (
            Name(HOSTILE),
            number(96, basis=Basis.MEASURED, source="our run of 2026-11-20, 3 times"),
            number(120, basis=Basis.EMULATED, source="paced at 1 %"),
            number(math.inf, "$/M"),
            number(0.00000123, "kW", Basis.ASSUMED, SCENARIO),
            "does not run",
        ),
    )
    columns = ("System", "Fastest answer", "Most tokens", Name("Price of 1M tokens"), "Power", "Source")
    note = (
        "No entry: nobody has published it. All at ",
        number(8192, "tokens", Basis.ASSUMED, SCENARIO),
        " of context.",
    )
    return Table("systems", "The systems beside each other", columns, rows, note)


def _speed() -> ReportSection:
    batch = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    gpu = Series(
        "8 × B200, DSpark",
        tuple(410 / (1 + b / 40) for b in batch),
        tuple(410 * b / (1 + b / 40) for b in batch),
        Basis.SIMULATED,
        "steps of 61 layers under 400 requests",
        notes=tuple(f"batch {b:.0f}" for b in batch),
    )
    plain = Series(
        "8 × B200, no drafter",
        tuple(160 / (1 + b / 60) for b in batch),
        (*(160 * b / (1 + b / 60) for b in batch[:-1]), math.inf),
        Basis.MODELLED,
        STEPS,
    )
    bound = Series("Bandwidth alone", (20.0, 700.0), (16000.0, 900.0), Basis.INFERRED, "8 × 8 TB/s", dashed=True)
    wafer = Series("CS-3", (2100.0, 1500.0), (2100.0, 9000.0), Basis.VENDOR, "Cerebras, 2026", style="points")
    hostile = Series(HOSTILE, (30.0, 90.0), (0.0, 700.0), Basis.MEASURED, "our run, 3 times", style="points")
    pareto = Plot(
        "pareto",
        "Speed of one answer against tokens of the whole system",
        Axis("Speed of one answer", "tok/s", log=True),
        Axis("Tokens of the system", "tok/s", log=True),
        (gpu, plain, bound, wafer, hostile),
        (
            Mark(
                "What CS-3 is sold for",
                "x",
                number(2100, basis=Basis.VENDOR, source="Cerebras, 2026"),
            ),
            Mark("Asked for", "y", number(5000, basis=Basis.ASSUMED, source=SCENARIO)),
            Mark("No end", "y", number(math.inf)),
        ),
    )
    return ReportSection("speed", "How fast", (pareto, _bars(), _steps()))


def _bars() -> Plot:
    names = ("Chat, 8k", "Code, 32k", "Agents with long prompts, 128k")
    return Plot(
        "ttft",
        "Time to the first token",
        Axis("Requests", ""),
        Axis("Time to the first token", "s"),
        (
            Series("8 × B200, DSpark", names, (0.4, 1.3, 5.2), Basis.SIMULATED, "400 requests", style="bars"),
            Series("CS-3", names, (0.3, 2.2, 9.0), Basis.ESTIMATE, "press, 2026", style="bars", dashed=True),
        ),
        (Mark("Asked for", "y", number(2, "s", Basis.ASSUMED, SCENARIO)),),
    )


def _steps() -> Waterfall:
    return Waterfall(
        "steps",
        "What each part of the software adds",
        Axis("Speed of one answer", "tok/s"),
        (
            ("Plain decode, TP8", number(160)),
            ("A drafter of 5 tokens", number(330)),
            ("Verifying only what is likely enough", ranged(412, 310, 640)),
            ("Scheduling and host", number(395)),
            (HOSTILE, number(396)),
        ),
    )


def _money() -> ReportSection:
    across, up = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), (0.5, 1.0, 2.0, 4.0, 8.0)
    z = tuple(tuple(None if x < y else 0.3 * x**1.2 / y for x in across) for y in up)
    payback = Heat(
        "payback",
        "When dedicated hardware pays for itself",
        Axis("Utilisation against today's", "×", log=True),
        Axis("Price of dedicated hardware", "$M", log=True),
        Axis("Months until it pays", "months", log=True),
        across,
        up,
        z,
        Basis.MODELLED,
        "prices of 2026 over modelled tokens",
        "never pays",
    )
    fine = tuple(float(i) for i in range(30))
    many = Heat(
        "many",
        "Share of requests in time",
        Axis("Requests", "1/s"),
        Axis("Context", "k tokens"),
        Axis("In time", "%"),
        fine,
        fine,
        tuple(tuple(100 * math.exp(-x * y / 300) for x in fine) for y in fine),
        Basis.SIMULATED,
        "400 requests",
    )
    what = Tornado(
        "unknowns",
        "What the result hangs on",
        Axis("Price", "$/M"),
        ranged(0.42, 0.31, 0.66, "$/M"),
        (
            ("Time of a hop, 1 to 10 µs", number(0.40, "$/M"), number(0.45, "$/M")),
            ("Acceptance of drafts", number(0.61, "$/M"), number(0.33, "$/M")),
            (HOSTILE, number(0.42, "$/M"), number(math.inf, "$/M")),
            ("Power, 1.1 to 1.2 kW", number(0.415, "$/M"), number(0.43, "$/M")),
        ),
    )
    return ReportSection("money", "What it costs — 日本語, ünïcode", (payback, many, what))
