"""Kernels compared with the machine: products of packed matrices, and a whole step of one request.

The matrices are those of the layers of a 60M Qwen3, enough of them that none stays in a cache. The step is that of a
decode engine, including its own time, compared with reading as many bytes in one piece.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn

from bench.ceiling import MachineRates, ModelCost, multiply_add_rate
from bench.console import TableRow
from bench.decode import DEEPSEEK_60M, QWEN3_60M, Ours, UniformWorkload, save_published
from bench.shape import BenchReport, seconds_of
from engine.kernels.linear import NativeLinear, PackedLinear
from engine.kernels.native import library
from engine.types import Request, Sampling, StopRules
from tests.checkpoints import DEEPSEEK_V3, QWEN3

SHAPES = ((512, 512), (512, 256), (512, 2048), (2048, 512))  # inputs, outputs
COPIES = 14
ROWS = (1, 4, 16, 32, 64, 128, 256, 512)
MANY_ROWS, OF_PEAK, OVER_READING = 128, 0.65, 1.3
ROUNDS, STEPS, PROMPT = 7, 40, 128


@torch.inference_mode()
def run(report: BenchReport) -> None:
    options = report.options
    rates = MachineRates.measured(options)
    peak = multiply_add_rate(options.threads)
    report.ceiling("memory read, GB/s", rates.read_bytes_per_second / 1e9)
    report.ceiling("multiply-add, Gflop/s", (peak or rates.flops) / 1e9)
    if peak is None:
        report.note("no C compiler: the ceiling of products is the best product of torch's own libraries")
    products = _products(report)
    report.table("products, Gflop/s", products)
    for row in products:
        if row["rows"] >= MANY_ROWS and row["ours_gflop_s"] is not None:
            share = row["ours_gflop_s"] * 1e9 / (peak or rates.flops)
            report.goal(f"a product of {row['rows']} rows, of the multiply-add peak", share, OF_PEAK, "")
    models = {"deepseek_v3": DEEPSEEK_V3, "qwen3": QWEN3}
    if not options.quick:
        models = {"qwen3-60m": QWEN3_60M, "deepseek-v3-60m": DEEPSEEK_60M}
    with TemporaryDirectory() as folder:
        steps = [_step(report, name, save_published(config, Path(folder) / name)) for name, config in models.items()]
    report.table("a step of one request", steps)
    for row in steps:
        what = f"{row['model']}, a step of one request over reading its bytes"
        report.goal(what, row["over_reading"], OVER_READING, "x", at_most=True)


def _products(report: BenchReport) -> list[TableRow]:
    """Time every matrix once by every library, for each number of rows."""
    quick = report.options.quick
    linears = [nn.Linear(*shape, bias=False) for shape in SHAPES for _ in range(1 if quick else COPIES)]
    for linear in linears:
        linear.weight.copy_(linear.weight.bfloat16())
    layers: dict[str, list[nn.Module]] = {"MKL": [*linears]}
    if torch.backends.mkldnn.is_available():
        layers["oneDNN"] = [PackedLinear(linear) for linear in linears]
    if (native := library()) is not None:
        layers["ours"] = [NativeLinear(linear, native) for linear in linears]
    flops = 2 * sum(linear.weight.numel() for linear in linears)

    def through(side: str) -> Callable[[int], float]:
        def timed(rows: int) -> float:
            x_by_size = {size: torch.randn(rows, size) for size, _ in SHAPES}
            pairs = [(layer, x_by_size[own.in_features]) for layer, own in zip(layers[side], linears, strict=True)]
            return seconds_of(lambda: [layer(x) for layer, x in pairs])

        return timed

    table = []
    for rows in ROWS[::4] if quick else ROWS:
        samples = report.alternately(f"{rows} rows", {s: through(s) for s in layers}, [rows] * (2 if quick else ROUNDS))
        rate = {side: flops * rows / samples.median(side) / 1e9 for side in layers}
        table.append({"rows": rows} | {f"{s.lower()}_gflop_s": rate.get(s) for s in ("ours", "oneDNN", "MKL")})
    return table


def _step(report: BenchReport, name: str, path: Path) -> TableRow:
    options = report.options
    ours = Ours(path, options)
    pair, model = ours.pair, ours.pair.builder.model
    steps, rounds = (3, 2) if options.quick else (STEPS, ROUNDS)
    workload = UniformWorkload(concurrency=1, prompt_tokens=PROMPT, output_tokens=(steps + 1) * (rounds + 1))
    (prompt,) = workload.prompts(model.config.vocab_size, seed=1)
    stop = StopRules(max_tokens=workload.output_tokens, ignore_eos=True)
    pair.begin([Request(id="one", prompt=prompt, sampling=Sampling(), stop=stop)])
    num_bytes = ModelCost.of(model).step_bytes(1, workload.prompt_tokens + workload.output_tokens // 2)
    memory = torch.ones(int(num_bytes) // 4)

    def stepping(_: int) -> float:
        def step() -> None:
            pair.take(pair.decoder.step())

        return median(seconds_of(step) for _ in range(steps))

    def reading(_: int) -> float:
        return median(seconds_of(memory.sum) for _ in range(steps))

    sides = {"step": stepping, "reading": reading}
    samples = report.alternately(f"{name}, a step", sides, list(range(rounds)))
    return {
        "model": name,
        "kernels": model.kernels,
        "mbytes": num_bytes / 1e6,
        "reading_ms": 1e3 * samples.median("reading"),
        "step_ms": 1e3 * samples.median("step"),
        "over_reading": 1 / samples.speed_up("step", "reading"),
    }
