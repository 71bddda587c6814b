"""Predictions beside what has been published, group by group, and what cannot be predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from compare.published.anchors import PublishedPoint, PublishedSet, published_sets
from compare.published.calibration import (
    CONTEXT,
    INPUT,
    OUTPUT,
    aggregated,
    alone,
    calibrated,
    flash,
    r1_decode,
    r1_prefill,
)
from compare.published.curves import BUDGET, DSPARK, INTERACTIVITY, THROUGHPUT, figure, figure_points, layers_of
from compare.study.dspark import CurvePoint, Drafting, predicted
from compare.study.scenario import Scenario
from compare.study.setups import BuiltSystems
from compare.study.steady import Steady
from hardware.device import Device, Numbers
from hardware.fit import MeasuredStep
from hardware.model import Model
from hardware.placement import fewest
from hardware.roofline import Roofline

PAPER = "DSpark paper, {}; read off the figure, to about one per cent"
CONCURRENCIES = (20, 60, 100, 150, 200)
RATES = (80, 90, 100, 120, 150, 180, 200, 220)
FIG8_THROUGHPUT, FIG8_BUDGET = "DSpark figure 8, throughput", "DSpark figure 8, verified tokens"
FIG7, CLAIMS = "DSpark figure 7", "What the DSpark paper says"
RACKS = {
    rack: (f"InferenceX V4-Pro {rack.upper()}, no speculation", f"InferenceX V4-Pro {rack.upper()}, with MTP")
    for rack in ("gb300", "gb200")
}
SGLANG, HOPPER = "SGLang V4-Flash, prefill in the same replica", "DeepSeek-R1 on Hopper"
WAFER = "Kimi K2 on Cerebras CS-3"

ALONE_NOTE = "the size of its replica is not published, so that its speed is held against, not its throughput"
MTP_NOTE = (
    "one draft, accepted length 1.79; how many drafts were made is not published, and the fastest points need more"
)


@dataclass(frozen=True)
class Check:
    """One published point and what is predicted for it. `fitted`: losses were fitted on this very point, so that its
    error says how well the model's shape fits and nothing of how well it predicts. `span`: where a range is published,
    that; `published` is its middle."""

    group: str
    what: str
    predicted: float
    published: float
    unit: str
    source: str
    label: str
    fitted: bool = False
    note: str = ""
    span: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """0.01: one per cent too much."""
        return self.predicted / self.published - 1


@dataclass(frozen=True)
class NotPredicted:
    """Something published that is not predicted, and why."""

    what: str
    why: str
    source: str


@cache
def with_dspark(model: str) -> tuple[CurvePoint, ...]:
    """Predicted from the paper's curve with MTP-1 (figure 8) and published acceptance."""
    layers = layers_of(model)
    assert layers is not None, model
    return tuple(predicted(figure_points(model), layers, Drafting()))


def fig8() -> Iterator[Check]:
    points = with_dspark("V4-Flash")
    counts = [point.concurrency for point in points]
    for group, name, unit, values in (
        (FIG8_THROUGHPUT, THROUGHPUT, "tok/s/GPU", [point.throughput for point in points]),
        (FIG8_BUDGET, BUDGET, "tokens", [point.verify_tokens for point in points]),
    ):
        for count in CONCURRENCIES:
            value = float(np.interp(count, counts, values))
            published = at(figure(name, "V4-Flash", DSPARK), count)
            yield Check(
                group, f"V4-Flash, {count} requests/GPU", value, published, unit, PAPER.format("figure 8"), "vendor"
            )


def fig7() -> Iterator[Check]:
    curve = [(point.user_rate, point.throughput) for point in with_dspark("V4-Flash")]
    for rate in RATES:
        published = at(figure(INTERACTIVITY, "V4-Flash", DSPARK), rate)
        yield Check(
            FIG7,
            f"V4-Flash at {rate} tok/s/user",
            at(curve, rate),
            published,
            "tok/s/GPU",
            PAPER.format("figure 7"),
            "vendor",
        )


def claims() -> Iterator[Check]:
    paper = "DSpark paper, text"
    for model, rate, percent in (("V4-Flash", 80, 51.0), ("V4-Pro", 35, 52.0)):
        before, after = by_rate(figure_points(model)), by_rate(with_dspark(model))
        more = 100 * (at(after, rate) / at(before, rate) - 1)
        yield Check(CLAIMS, f"{model}: more throughput at {rate} tok/s/user", more, percent, "%", paper, "vendor")
    published = figure(INTERACTIVITY, "V4-Flash", "MTP-1"), figure(INTERACTIVITY, "V4-Flash", DSPARK)
    for throughput in (2000, 10_000, 16_000):
        more = faster(figure_points("V4-Flash"), with_dspark("V4-Flash"), throughput)
        read = 100 * (_at_throughput(published[1], throughput) / _at_throughput(published[0], throughput) - 1)
        what = f"V4-Flash: faster for each user at {throughput:,} tok/s/GPU"
        yield Check(CLAIMS, what, more, read, "%", PAPER.format("figure 7"), "vendor")
    for model, low, high, ends in (("V4-Flash", 60.0, 85.0, (2000, 10_000)), ("V4-Pro", 57.0, 78.0, (1000, 4000))):
        more = sum(faster(figure_points(model), with_dspark(model), end) for end in ends) / 2
        what = f"{model}: faster for each user, middle from {ends[0]:,} to {ends[1]:,} tok/s/GPU"
        note = "at which throughputs its range holds, the paper does not say"
        yield Check(CLAIMS, what, more, (low + high) / 2, "%", paper, "vendor", note=note, span=(low, high))


def inferencex() -> Iterator[Check]:
    for rack in RACKS:
        for name in (f"v4-pro-{rack}", f"v4-pro-{rack}-later"):
            found = published_sets()[name]
            for point, error in zip(found.points, calibrated(f"inferencex-{name}").errors, strict=True):
                software = ", later software" if name.endswith("-later") else ""
                what = f"at {point.at:g} tok/s/user{software}"
                check = _anchored(RACKS[rack][0], what, point.value * (1 + error), found, point, fitted=True)
                if alone(point):
                    assert point.at is not None
                    rate, unit = point.at * (1 + error), found.at
                    what = f"a request alone, {point.value:g} tok/s/GPU{software}"
                    check = replace(check, what=what, predicted=rate, published=point.at, unit=unit, note=ALONE_NOTE)
                yield check
    for rack in RACKS:
        found, steady = published_sets()[f"v4-pro-{rack}-mtp"], _with_mtp(rack)
        for point in found.points:
            assert point.at is not None
            best = steady.fullest(point.at, steady.setup.max_requests)
            units = sum(part.units for part in best.machines) if best is not None else 1.0
            value = best.throughput * (1 + INPUT / OUTPUT) / units if best is not None else 0.0
            yield _anchored(
                RACKS[rack][1], f"at {point.at:g} tok/s/user", value, found, point, fitted=False, note=MTP_NOTE
            )


def _with_mtp(rack: str) -> Steady:
    """Return a system with the losses that were fitted on the points without speculation of the same page."""
    device = f"{rack}-nvl72"
    decode = {"device": device, "units": [8]}
    system = {"decode": decode, "prefill": {"device": device, "attention": "tensor"}, "drafts": "mtp"}
    content = {
        "title": "InferenceX",
        "model": "deepseek-v4-pro",
        "workload": {"input_tokens": INPUT, "output_tokens": OUTPUT},
        "devices": {device: {"losses": f"inferencex-v4-pro-{rack}-later"}},
        "systems": {"mtp": system},
    }
    scenario = Scenario.parse(content)
    return Steady.of(BuiltSystems(scenario).setups["mtp"][0], scenario, scenario.acceptance.drafting)


def sglang() -> Iterator[Check]:
    losses = calibrated("sglang-v4-flash-h200").losses
    hopper = flash("h200", losses)
    for name, dspark in (("v4-flash-h200-dspark", True), ("v4-flash-h200-none", False)):
        for point in published_sets()[name].points:
            step, gained = aggregated(point, dspark)
            value = 1e3 * step.modelled(hopper) / gained
            what = f"4 H200, {'DSpark' if dspark else 'no speculation'}, {point.at:g} at once"
            yield _anchored(SGLANG, what, value, published_sets()[name], point, fitted=True)
    found = published_sets()["v4-flash-gb300-dspark"]
    times = flash("gb300-nvl72", calibrated("inferencex-v4-pro-gb300-later").losses)
    for point in found.points:
        step, gained = aggregated(point, True)
        value = 1e3 * step.modelled(times) / gained
        note = "losses of V4-Pro under another engine; at 16 at once the source has GB300 no faster than H200"
        yield _anchored(SGLANG, f"4 GB300, DSpark, {point.at:g} at once", value, found, point, fitted=False, note=note)


def r1_on_hopper() -> Iterator[Check]:
    losses, found = calibrated("sglang-r1-h100").losses, published_sets()["r1-h100-lmsys"]
    prefill, decode = found.points
    yield _anchored(HOPPER, "96 H100, prefill", r1_prefill(losses), found, prefill, fitted=True)
    assert decode.requests is not None
    rate = r1_decode(losses, 72, round(decode.requests), 2000)
    yield _anchored(HOPPER, "96 H100, decode", rate, found, decode, fitted=True)
    found = published_sets()["r1-h800-day"]
    (point,) = (point for point in found.points if point.name == "decode")
    assert point.at is not None
    requests = round(144 / 8 * point.value / point.at)  # so many are under way if each gets that rate
    note = "H800 taken as H100, which has the same arithmetic and memory; without MTP, of which the source says nothing"
    yield _anchored(
        HOPPER, "H800 over 144, decode", r1_decode(losses, 144, requests, 4989), found, point, fitted=False, note=note
    )


def wafer() -> Iterator[Check]:
    found, losses = published_sets()["kimi-k2-cs3"], calibrated("kimi-k2-cs3").losses
    model, numbers = Model.of("kimi-k2"), Numbers(Device.load("cerebras-cs-3"))
    times = Roofline(model, numbers, fewest(model, numbers, "data"), losses)
    rate = 1 / MeasuredStep(1, 1, 10_250, 1.0).modelled(times)
    yield _anchored(WAFER, "one user", rate, found, found.points[0], fitted=True)


def left_out() -> list[NotPredicted]:
    sets = published_sets()
    mlperf, day, h100 = sets["r1-gb300-mlperf"], sets["r1-h800-day"], sets["r1-h100-lmsys"]
    points = ", ".join(f"{point.name} {point.value:,.0f}" for point in mlperf.points)
    return [
        NotPredicted(
            f"MLPerf, DeepSeek-R1 on GB300: {points} {mlperf.unit}",
            "lengths, batch sizes, parallelism and speculation of the submission are not in the source, and no losses "
            "of R1 in FP4 on GB300 are fitted",
            mlperf.source,
        ),
        NotPredicted(
            f"DeepSeek's own service, prefill {day.value('prefill'):,.0f} {day.unit}",
            "a mean over a day with idle hours, more than half of it read from a cache",
            day.source,
        ),
        NotPredicted(
            "96 H100 with simulated MTP, 17,400 tok/s/node", "its batch size is not in the source", h100.source
        ),
        NotPredicted(
            "V4-Flash on 8 B200, 1.88 ms/token",
            "no losses of B200 are fitted: one point is too few",
            "https://github.com/sgl-project/sglang/pull/29538",
        ),
        NotPredicted(
            "AgentX and AA-AgentPerf, tok/s and agents per MW",
            f"they count cached input and have 140,000 tokens of it and more; losses are fitted at {CONTEXT:,}",
            "https://newsletter.semianalysis.com/p/vera-rubin-nvl72-agentic-inference",
        ),
        NotPredicted(
            "Groq 3 LPX with Rubin, 35 times GB200's tok/s per MW",
            "a projection for a model that does not exist; power and hop latency are unknown, nothing is measured",
            "https://nvidianews.nvidia.com/news/"
            "nvidia-groq-3-lpx-now-in-full-production-with-world-class-speed-for-agentic-ai",
        ),
    ]


def _anchored(
    group: str, what: str, value: float, found: PublishedSet, point: PublishedPoint, *, fitted: bool, note: str = ""
) -> Check:
    notes = "; ".join(text for text in (note, point.note) if text)
    return Check(
        group, what, value, point.value, found.unit, f"{found.by}: {found.source}", str(found.label), fitted, notes
    )


def at(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Straight lines between points, as in the figures."""
    xs, values = zip(*sorted(curve), strict=True)
    return float(np.interp(x, xs, values))


def by_rate(points: Sequence[CurvePoint]) -> list[tuple[float, float]]:
    return [(point.user_rate, point.throughput) for point in points]


def _at_throughput(curve: Sequence[tuple[float, float]], throughput: float) -> float:
    return at([(y, x) for x, y in curve], throughput)


def faster(before: Sequence[CurvePoint], after: Sequence[CurvePoint], throughput: float) -> float:
    """Per cent, at equal throughput."""
    rates = [_at_throughput(by_rate(points), throughput) for points in (before, after)]
    return 100 * (rates[1] / rates[0] - 1)


def checks() -> list[Check]:
    """All of them, group by group. Takes seconds: losses are fitted first."""
    return [check for group in GROUPS for check in group()]


GROUPS = (fig8, fig7, claims, inferencex, sglang, r1_on_hopper, wafer)
