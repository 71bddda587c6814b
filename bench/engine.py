"""What a decode step takes besides the model: schedule, batch building, sampling, commit, text.

The shipped model, greedy, one decode engine, no speculation, all requests prefilled; the figures of `GetStats`.
"""

from statistics import median
from typing import Any

from bench.ceiling import Rates
from bench.shape import Options, Report
from bench.speculation import NONE, SpeculationSide, held_out_prompts
from engine.config import SHIPPED_MODEL, Config
from engine.models import load_model
from engine.types import Request, Sampling, StopRules

TARGETS_MS = {1: 0.5, 32: 1.5}
STEPS, WARM_UP = 200, 20


def run(report: Report) -> None:
    options = report.options
    report.ceiling("memory read, GB/s", Rates.measured(options).read_bytes_per_second / 1e9)
    rows = [_measured(at_once, options) for at_once in ((1, 4) if options.quick else TARGETS_MS)]
    report.table("a decode step", rows)
    for row in rows:
        if row["at_once"] in TARGETS_MS:
            what = f"the engine's own time of a step, {row['at_once']} at once"
            report.goal(what, row["own_ms"], TARGETS_MS[row["at_once"]], "ms", at_most=True)


def _measured(at_once: int, options: Options) -> dict[str, Any]:
    steps = 10 if options.quick else STEPS
    model = load_model(SHIPPED_MODEL, Config().model.torch_dtype, options.device)
    side = SpeculationSide(NONE, model, options)
    pair = side.pair
    stop = StopRules(max_tokens=steps + WARM_UP + 2, ignore_eos=True)
    prompts = enumerate(held_out_prompts()[:at_once])
    pair.begin([Request(id=str(i), prompt=prompt, sampling=Sampling(), stop=stop) for i, prompt in prompts])
    own, models = [], []
    for _ in range(steps + WARM_UP):
        before = pair.decoder.stats()
        pair.take(pair.decoder.step())
        after = pair.decoder.stats()
        models.append(after.counters.compute_seconds - before.counters.compute_seconds)
        own.append(after.counters.step_seconds - before.counters.step_seconds - models[-1])
    return {
        "at_once": at_once,
        "own_ms": 1e3 * median(own[WARM_UP:]),
        "model_ms": 1e3 * median(models[WARM_UP:]),
    }
