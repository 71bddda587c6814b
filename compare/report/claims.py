"""Section: claims of the press and of vendors, what they compare, and the same comparison here."""

import math
from dataclasses import dataclass

from compare.published.checks import at, by_rate, faster, with_dspark
from compare.published.curves import figure_points
from compare.report.document import Block, Cell, Name, Number, Paragraph, ReportSection, Table
from compare.report.numbers import modelled
from compare.study.study import Best, Study, joules
from hardware.model import Model

PAPER = (
    "DSpark paper, figures seven and eight, digitised; predicted from the MTP-1 curve alone (compare/study/dspark.py)"
)
LONG_INPUT, LONG_OUTPUT, LONG_CACHED, LONG_SPEED = 400_000, 400, 0.99, 400.0
NVIDIA = (
    "https://nvidianews.nvidia.com/news/nvidia-groq-3-lpx-now-in-full-production-with-world-class-speed-for-agentic-ai"
)


@dataclass(frozen=True)
class Claim:
    """A published claim, in its own words (`says`), and what it `compares`. `here` is the result of the same comparison
    in this report, which holds `under` some conditions."""

    says: str
    compares: str
    here: Number | str
    under: str


def section(study: Study) -> ReportSection:
    claims = [*_dspark(), *_memory(), *_lpx(study), *_cerebras(study)]
    rows: list[tuple[Cell, ...]] = []
    for claim in claims:
        here = claim.here if isinstance(claim.here, Number) else Name(claim.here)
        rows.append((Name(claim.says), Name(claim.compares), here, Name(claim.under)))
    columns = ("what is said", "what that compares", "here", "under which conditions")
    blocks: list[Block] = [
        Paragraph.of(
            "Each is true under some conditions. None holds at every load, and most compare two changes at once."
        ),
        Table("claims", "What has been said", columns, tuple(rows)),
    ]
    return ReportSection("claims", "What has been said", tuple(blocks))


def _dspark() -> list[Claim]:
    found = []
    for model, ends, says, speed, more in (
        ("V4-Flash", (2000.0, 16_000.0), "60 to 85% faster for each user", 80.0, "51% more throughput"),
        ("V4-Pro", (1000.0, 5000.0), "57 to 78% faster for each user", 35.0, "52% more throughput"),
    ):
        before, after = figure_points(model), with_dspark(model)
        percents = [faster(before, after, throughput) for throughput in (math.sqrt(ends[0] * ends[1]), *ends)]
        compares = f"DSpark with MTP-1 on {model}, at equal throughput, on hardware that the paper does not name"
        under = f"from {ends[0]:,.0f} to {ends[1]:,.0f} tok/s of each GPU; it shrinks with load"
        found.append(Claim(says, compares, modelled(percents[0], "%", PAPER, percents[1:]), under))
        gain = at(by_rate(after), speed) / at(by_rate(before), speed) - 1
        compares = f"the same at {speed:.0f} tok/s of each user"
        found.append(
            Claim(more, compares, modelled(100 * gain, "%", PAPER), "at that one speed, where MTP-1 falls fast")
        )
    return found


def _memory() -> list[Claim]:
    old, context = Model.of("deepseek-v3.2"), 1 << 20
    found = []
    for name, says in (("deepseek-v4-pro", "about 10% of V3.2's cache"), ("deepseek-v4-flash", "about 7% of it")):
        share = sum(Model.of(name).cache_bytes(context).values()) / sum(old.cache_bytes(context).values())
        here = modelled(100 * share, "%", "counted from both config.json (sparkpool layout)")
        compares = f"{name} with DeepSeek-V3.2, bytes of cache of one request of 1,048,576 tokens"
        under = "index keys in FP4, as the paper has them; it comes from compressed attention (CSA, HCA), not from MLA"
        found.append(Claim(says, compares, here, under))
    return found


def _lpx(study: Study) -> list[Claim]:
    """Compare at Nvidia's own operating point, if the scenario has systems of both sides."""
    scenario = study.scenario
    old = [name for name, system in scenario.systems.items() if system.decode.device == "gb200-nvl72"]
    new = [name for name, system in scenario.systems.items() if _helped(study, name) == "groq-3-lpx"]
    if not old or not new:
        return []
    changed = {"input_tokens": LONG_INPUT, "output_tokens": LONG_OUTPUT, "cached_share": LONG_CACHED}
    there = study.varied(scenario.model_copy(update={"workload": scenario.workload.model_copy(update=changed)}))
    before = _best_of(there, old, LONG_SPEED)
    after = _best_of(there, new, LONG_SPEED)
    says = "up to 35 times the tokens per second of a megawatt"
    compares = (
        f"Rubin and LPX with GB200, a synthetic 2T model, 400K tokens of context, 400 tok/s of each user ({NVIDIA})"
    )
    if after is None or before is None:
        slow = [side for side, best in (("GB200", before), ("Rubin with LPX", after)) if best is None]
        here: Number | str = f"no factor: {' and '.join(slow)} too slow for that here"
    else:
        here = modelled(joules(before) / joules(after), "times")
    under = (
        f"{scenario.model} instead of that model, best of each side's systems; GB200 stands at the edge of what it can"
    )
    return [Claim(says, compares, here, under)]


def _cerebras(study: Study) -> list[Claim]:
    wafers = [name for name, system in study.scenario.systems.items() if system.decode.device == "cerebras-cs-3"]
    against = [study.scenario.contenders[name] for name in wafers if name in study.scenario.contenders]
    if not against:
        return []
    rates = [max(one.at(1).user_rate for one in study.steady[name]) for name in (wafers[0], against[0])]
    says = "an order of magnitude faster (AWS with Cerebras)"
    compares = "Trainium prefill with CS-3 decode; with what, on which model, at which context: not said"
    under = f"one request alone, beside {against[0]}; not at equal cost"
    return [Claim(says, compares, modelled(rates[0] / rates[1], "times"), under)]


def _helped(study: Study, name: str) -> str:
    system = study.scenario.systems[name]
    return system.helper.device if system.helper is not None else system.decode.device


def _best_of(study: Study, names: list[str], speed: float) -> Best | None:
    found = [best for name in names if (best := study.best(name, speed)) is not None]
    return min(found, key=joules, default=None)
