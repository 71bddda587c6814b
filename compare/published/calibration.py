"""Losses of devices (hardware/roofline.py), each fitted on published measurements (compare/published/)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from compare.published.anchors import PublishedPoint, PublishedSet, published_sets
from compare.published.terms import BEST, Steps
from compare.study.dspark import PUBLISHED_DSPARK
from engine.errors import ConfigError
from hardware.device import Device, Numbers
from hardware.fit import Fitted, MeasuredStep, closest
from hardware.model import Model
from hardware.placement import MemoryFit, Placement, fewest
from hardware.roofline import DraftShape, Losses, Roofline, Work

INPUT, OUTPUT = 8192, 1024
"""Tokens of a request, of InferenceX and of SGLang's pull requests."""
CONTEXT = INPUT + OUTPUT // 2
DECODE_UNITS = 8
UTILISATION = 0.8
PREFILL_TOKENS = 16_384
DRAFTER_LAYERS = 3
LATER = "-later"
FREE = ("compute", "memory", "layer_seconds")  # a time of each step would be one with that of its layers here

CALIBRATIONS: Mapping[str, str] = {
    "inferencex-v4-pro-gb300": "V4-Pro FP4 on GB300 NVL72, 8K in and 1K out: five points, no speculation (InferenceX)",
    "inferencex-v4-pro-gb200": "V4-Pro FP4 on GB200 NVL72, 8K in and 1K out: five points, no speculation (InferenceX)",
    "inferencex-v4-pro-gb300-later": "with later software: three points; arithmetic from the earlier ones",
    "inferencex-v4-pro-gb200-later": "with later software: three points; arithmetic from the earlier ones",
    "sglang-v4-flash-h200": "V4-Flash on 4 H200, 8K in and 1K out, with DSpark and without (SGLang pull request 33109)",
    "sglang-r1-h100": "DeepSeek-R1 on 96 H100: a point of prefill and one of decode for two losses (SGLang)",
    "kimi-k2-cs3": "unverified: each layer's time from one rate of Kimi K2.6 on Cerebras CS-3, else ideal",
}
"""What there is, by name."""


@cache
def calibrated(name: str) -> Fitted:
    """The losses fitted under that name, and the errors at the points they are fitted on: those of throughput, of
    step times where times are published, of a user's rate where a request is alone. Raises ConfigError if there is no
    such fit."""
    if name not in _FITS:
        raise ConfigError(f"calibration {name!r} is not known; {', '.join(CALIBRATIONS)} are")
    return _FITS[name](name)


def source_of(name: str, *sets: PublishedSet) -> str:
    """Return the source that a fit's losses state."""
    addresses = ", ".join(dict.fromkeys(one.source for one in sets))
    return f"fitted on {sum(len(one.points) for one in sets)} published points ({name}: {addresses})"


@dataclass(frozen=True)
class DisaggregatedPools:
    """V4-Pro under InferenceX's load: decode replicas of DECODE_UNITS with replicated attention, and as many of the
    smallest prefill replicas as keep up at UTILISATION. The ratio of the two is not published; that follows."""

    units: int
    prefill: Steps
    decode: Steps
    requests: "np.ndarray"
    """Of each step in `decode`."""

    @classmethod
    def of(cls, model: Model, numbers: Numbers) -> "DisaggregatedPools":
        placement = fewest(model, numbers, "tensor")
        prompts = PREFILL_TOKENS // INPUT
        work = Work(prompts, prompts * INPUT, INPUT // 2)
        prefill = Steps.of(Roofline(model, numbers, placement, BEST), [work])
        decode = Placement(DECODE_UNITS)
        limit = MemoryFit(model, decode, numbers.get("memory")).max_requests(INPUT + OUTPUT)
        full = (DECODE_UNITS * each << power for power in range(14) for each in (2, 3))
        counts = [count for count in (1, 2, 4, DECODE_UNITS, *full) if count < limit]
        steps = [Work(count, count, CONTEXT) for count in (*counts, limit)]
        roofline = Roofline(model, numbers, decode, BEST)
        return cls(placement.all_units, prefill, Steps.of(roofline, steps), np.array([work.requests for work in steps]))

    def error(self, losses: Losses, point: PublishedPoint) -> float:
        """Logarithm of predicted over published throughput; of the user's rate if `alone`."""
        if alone(point):
            return -math.log(float(self.decode.seconds(losses)[0]) * _user_rate(point))
        return math.log(self.throughput(losses, _user_rate(point)) / point.value)

    def throughput(self, losses: Losses, user_rate: float) -> float:
        """Input and output tokens per second of each GPU, where each user gets so many output tokens per second. Below
        one request it falls steeply, so that a search finds its way back."""
        seconds, wanted = self.decode.seconds(losses), 1 / user_rate
        if seconds[0] > wanted:
            requests = (wanted / seconds[0]) ** 8
        else:
            requests = math.exp(np.interp(math.log(wanted), np.log(seconds), np.log(self.requests)))
        output = requests * user_rate
        prompt = float(self.prefill.seconds(losses)[0]) * INPUT / PREFILL_TOKENS
        units = DECODE_UNITS + output / OUTPUT * prompt * self.units / UTILISATION
        return float(output * (1 + INPUT / OUTPUT) / units)


def _inferencex(name: str) -> Fitted:
    found = published_sets()[name.removeprefix("inferencex-")]
    device = "gb300-nvl72" if "gb300" in name else "gb200-nvl72"
    model = Model.of("deepseek-v4-pro")
    pools = DisaggregatedPools.of(model, Numbers(Device.load(device)))

    def errors(losses: Losses) -> tuple[float, ...]:
        return tuple(pools.error(losses, point) for point in found.points)

    base, free = Losses(source=source_of(name, found)), list(FREE)
    if name.endswith(LATER):  # none of its points is where prefill sets the limit: they say nothing of arithmetic
        earlier = calibrated(name.removesuffix(LATER)).losses
        base = replace(base, compute=earlier.compute, source=f"{base.source}; arithmetic as {earlier.source}")
        free.remove("compute")
    shortest = 1 / max(_user_rate(point) for point in found.points)
    best = closest(errors, base, shortest, len(model.layers), free)
    return Fitted(best.losses, tuple(math.exp(error) - 1 for error in best.errors))


def alone(point: PublishedPoint) -> bool:
    """Tell whether a point's throughput is that of fewer than two requests in a replica. How many GPUs shared them is
    not published, so that throughput says nothing; how fast a request alone is does."""
    return point.value / (1 + INPUT / OUTPUT) / _user_rate(point) * DECODE_UNITS < 2


def _user_rate(point: PublishedPoint) -> float:
    assert point.at is not None, point
    return point.at


def flash(device: str, losses: Losses) -> Roofline:
    """V4-Flash with DSpark on four GPUs."""
    model = Model.of("deepseek-v4-flash")
    drafter = DraftShape.dspark(model, len(PUBLISHED_DSPARK), DRAFTER_LAYERS)
    return Roofline(model, Numbers(Device.load(device)), Placement(4), losses, drafter)


def aggregated(point: PublishedPoint, dspark: bool) -> tuple[MeasuredStep, float]:
    """A step of a replica that prefills as well: beside its own tokens it has those of the other requests' prompts that
    come in while it runs. Also the tokens that it gives each request."""
    assert point.requests is not None
    each, gained = (1 + len(PUBLISHED_DSPARK), PUBLISHED_DSPARK[-1]) if dspark else (1, 1.0)
    tokens = round(point.requests * each + (point.requests - 1) * gained * INPUT / OUTPUT)
    return MeasuredStep(round(point.requests), tokens, CONTEXT, 1e-3 * point.value * gained, dspark), gained


def _sglang_h200(name: str) -> Fitted:
    drafted, plain = published_sets()["v4-flash-h200-dspark"], published_sets()["v4-flash-h200-none"]
    steps = [aggregated(point, True)[0] for point in drafted.points]
    steps += [aggregated(point, False)[0] for point in plain.points]
    best = flash("h200", BEST)

    def errors(losses: Losses) -> tuple[float, ...]:
        times = replace(best, losses=losses)
        return tuple(step.modelled(times) / step.seconds - 1 for step in steps)

    shortest = min(step.seconds for step in steps)
    return closest(errors, Losses(source=source_of(name, drafted, plain)), shortest, 43, FREE)


@cache
def _r1() -> Model:
    return Model.of("deepseek-r1")


@cache
def _h100() -> Device:
    return Device.load("h100")


def r1_h100(units: int, losses: Losses) -> Roofline:
    """Return the step times of DeepSeek-R1 with its experts over that many H100. All messages go at NVLink's bandwidth,
    those between boards too: overlap and DeepSeek's routing to few nodes hide most of the network's cost (at its
    bandwidth even ideal prefill would be slower than the published)."""
    return Roofline(_r1(), Numbers(_h100()), Placement(units), losses)


R1_PREFILL_UNITS, R1_DECODE_UNITS, R1_INPUT = 32, 72, 2000


def r1_prefill(losses: Losses) -> float:
    """Tokens per second of a node of eight: each GPU has PREFILL_TOKENS of whole prompts."""
    prompts = R1_PREFILL_UNITS * PREFILL_TOKENS // R1_INPUT
    seconds = r1_h100(R1_PREFILL_UNITS, losses).prefill_seconds(prompts, prompts * R1_INPUT, R1_INPUT // 2)
    return 8 * prompts * R1_INPUT / seconds / R1_PREFILL_UNITS


def r1_decode(losses: Losses, units: int, requests: int, context: int) -> float:
    """Tokens per second of a node of eight, of a replica of so many units."""
    return 8 * requests / units / r1_h100(units, losses).verify_seconds(requests, requests, context)


def _sglang_h100(name: str) -> Fitted:
    found = published_sets()["r1-h100-lmsys"]
    requests = next(round(point.requests) for point in found.points if point.requests)

    def errors(losses: Losses) -> tuple[float, ...]:
        decode = r1_decode(losses, R1_DECODE_UNITS, requests, R1_INPUT)
        return r1_prefill(losses) / found.value("prefill") - 1, decode / found.value("decode") - 1

    shortest = 8 * requests / R1_DECODE_UNITS / found.value("decode")
    return closest(errors, Losses(source=source_of(name, found)), shortest, 61, ("compute", "layer_seconds"))


def _cs3(name: str) -> Fitted:
    found = published_sets()["kimi-k2-cs3"]
    model, numbers = Model.of("kimi-k2"), Numbers(Device.load("cerebras-cs-3"))
    placement = fewest(model, numbers, "data")

    def errors(losses: Losses) -> tuple[float, ...]:
        return (
            1 / Roofline(model, numbers, placement, losses).verify_seconds(1, 1, 10_250) / found.value("one user") - 1,
        )

    base = Losses(source=f"unverified; {source_of(name, found)}")
    return closest(errors, base, 1 / found.value("one user"), len(model.layers), ("layer_seconds",))


_FITS: Mapping[str, Callable[[str], Fitted]] = {
    **{name: _inferencex for name in CALIBRATIONS if name.startswith("inferencex-")},
    "sglang-v4-flash-h200": _sglang_h200,
    "sglang-r1-h100": _sglang_h100,
    "kimi-k2-cs3": _cs3,
}
