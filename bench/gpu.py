"""Eager torch on a GPU: parity with transformers, steps against the memory bandwidth, and serving.

One command for a machine with a GPU that has torch, transformers, pydantic and accelerate, and neither Ray, NIXL nor
rich: `python -m bench gpu`. It uses no native kernels: every figure is eager torch. `--device cpu --quick` tries the
benchmark itself without a GPU.

    parity    greedy tokens of random models in float32, against transformers on the same device
    steps     of random models in bfloat16, without an engine; some of them beside their CUDA graphs
    serving   whole engines: the shipped model with and without its drafter, and the random models
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import eq
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoTokenizer, DeepseekV3Config, PretrainedConfig, Qwen3Config

import engine
from bench import reference
from bench.ceiling import MachineRates
from bench.console import TableRow
from bench.device_work import median_seconds
from bench.serving import Prompt, Served, Workload
from bench.shape import BenchOptions, BenchReport
from bench.speculation import CAUSAL, DSPARK, NONE
from bench.steps import PAGE_TOKENS, Stepper, StepShape
from engine.config import SHIPPED_MODEL, Config
from engine.models import LoadedModel, load_model
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN3, VOCAB, save_random

HOW = "eager torch"
PARITY = {"deepseek_v3": DEEPSEEK_V3, "qwen3": QWEN3, "llama": LLAMA}
PROMPT_TOKENS = (1, 63, 64, 65, 150, 400)
ROUNDS = 3
COPIES, TRIES = 20, 5
SMALL = {"eos_token_id": 256, "bos_token_id": None, "vocab_size": 32768, "max_position_embeddings": 65536}
STEP_MODELS: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        **SMALL,
    ),
    "deepseek_v3": DeepseekV3Config(
        hidden_size=1024,
        intermediate_size=4096,
        moe_intermediate_size=512,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=512,
        q_lora_rank=384,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        **SMALL,
    ),
}
STEPS = [StepShape(r, q, context) for context in (1024, 8192) for r in (1, 8, 32) for q in (1, 5)]
QUICK_STEPS = [StepShape(1, 1, 64), StepShape(4, 3, 128)]
GRAPHS = [StepShape(*shape) for shape in ((1, 1, 1024), (8, 1, 1024), (8, 5, 1024), (32, 1, 1024), (32, 1, 8192))]
LONGEST = [StepShape(1, 1, 1024), StepShape(32, 1, 8192)]  # whose longest kernels are listed
AT_ONCE = (1, 8, 32, 128)
WATCHED = (1, 32)  # requests at once in the steps that are profiled
SHIPPED_SIDES = (NONE, DSPARK, CAUSAL)
OUTPUT_TOKENS = 32


def run(report: BenchReport) -> None:
    options = report.options
    if options.device.type == "cpu" and not options.quick:
        report.note("not yet measured: no GPU at hand (`--device cpu --quick` tries the benchmark itself)")
        return
    rates = _rates(report)
    report.note(f"every figure is {HOW}; weights are random except the shipped model's")
    with TemporaryDirectory() as folder:
        parity(report, Path(folder))
        models = random_models(report, Path(folder))
        steps(report, models, rates)
        serving(report, models)
        graphs(report, models, rates)


def _rates(report: BenchReport) -> MachineRates:
    """Measure what the device can do. On a GPU, several copies of gigabytes are timed together, so that launches do not
    count."""
    options = report.options
    rates = MachineRates.measured(options)
    if options.device.type == "cuda":
        source, target = torch.randn(2, 2**29, device=options.device)
        seconds = median_seconds(lambda: [target.copy_(source) for _ in range(COPIES)], options.device, TRIES)
        rates = replace(rates, copy_bytes_per_second=2 * COPIES * source.nbytes / seconds)
        matrix = torch.randn(8192, 8192, device=options.device, dtype=torch.bfloat16)
        seconds = median_seconds(lambda: matrix @ matrix, options.device, TRIES)
        report.ceiling("bfloat16 product, Gflop/s", 2 * 8192**3 / seconds / 1e9)
    report.ceiling("copy in the device's memory, read + written, GB/s", rates.copy_bytes_per_second / 1e9)
    report.ceiling("float32 product, Gflop/s", rates.flops / 1e9)
    return rates


def parity(report: BenchReport, folder: Path) -> None:
    """Compare every family's tokens with transformers'."""
    rows = [_parity(folder / name, name, config, report.options) for name, config in PARITY.items()]
    report.table("greedy tokens against transformers, float32", rows)
    answers, same = (sum(row[key] for row in rows) for key in ("answers", "same"))
    report.goal(f"answers of {len(rows)} families that are transformers' own to the end", same, answers, "answers")


def _parity(path: Path, name: str, config: PretrainedConfig, options: BenchOptions) -> TableRow:
    """Run all prompts at once through both engines, and one at a time through transformers on the same device."""
    save_random(config, path)
    engine = {"device": str(options.device), "threads": options.threads, "cache_bytes": "64MiB"}
    sections = {"prefill": {**engine, "chunk_tokens": 96}, "decode": {"default": engine}}
    pair = Pair(Config.parse({"model": {"path": path, "page_tokens": PAGE_TOKENS}, **sections}))
    rng = random.Random(5)
    output_tokens = 4 if options.quick else 40
    requests = [
        Request(
            id=str(tokens),
            prompt=tuple(rng.randrange(VOCAB) for _ in range(tokens)),
            sampling=Sampling(),
            stop=StopRules(max_tokens=output_tokens, ignore_eos=True),
        )
        for tokens in PROMPT_TOKENS
    ]
    ours = pair.generate(requests)
    generate = reference.Generate(reference.load(path, options.device))
    ties = sum(generate.answers([r.prompt], output_tokens).ties_with([ours[r.id]]) for r in requests)
    return {"model": name, "answers": len(requests), "same": len(requests) - ties, "ties": ties, "how": HOW}


def random_models(report: BenchReport, folder: Path) -> dict[str, LoadedModel]:
    """Create the models whose steps are timed (bfloat16 on a GPU), on the device, because a CPU would take minutes."""
    device, quick = report.options.device, report.options.quick
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    models = {}
    for name, config in ({"qwen3": QWEN3} if quick else STEP_MODELS).items():
        with device:
            path = save_random(config, folder / f"step_{name}", dtype=dtype)
        models[name] = load_model(path, dtype, device)
    return models


def steps(report: BenchReport, models: dict[str, LoadedModel], rates: MachineRates) -> None:
    """Compare steps with the memory bandwidth, and list the longest kernels of some."""
    rows, kernels = [], []
    for name, model in models.items():
        stepper = Stepper(report, name, model, rates.copy_bytes_per_second)
        rows += stepper.rows(QUICK_STEPS if report.options.quick else STEPS)
        kernels += [row for step in LONGEST for row in stepper.kernels(step)] if not report.options.quick else []
    report.table(f"steps, {HOW}", [{**row, "how": HOW} for row in rows])
    if kernels:
        report.table("kernels that take longest", kernels)


def graphs(report: BenchReport, models: dict[str, LoadedModel], rates: MachineRates) -> None:
    """Time steps as CUDA graphs. This is run last, because a capture that fails may leave the device unusable."""
    if report.options.device.type != "cuda":
        return
    rows = []
    for name, model in models.items():
        stepper = Stepper(report, name, model, rates.copy_bytes_per_second)
        for step in GRAPHS:
            with _errors_noted(report, f"{name}: {step} as a CUDA graph"):
                rows.append(stepper.replayed(step))
    if rows:
        report.table("steps as CUDA graphs", rows)


def serving(report: BenchReport, models: dict[str, LoadedModel]) -> None:
    """Time whole engines."""
    options = report.options
    tables: dict[str, list[TableRow]] = defaultdict(list)
    work = Workload((1, 4), 24, 8, 1) if options.quick else Workload(AT_ONCE, 512, OUTPUT_TOKENS, 1)
    for name, model in models.items():
        rng, vocab = random.Random(3), model.config.vocab_size
        prompts = [tuple(rng.randrange(vocab) for _ in range(work.prompt_tokens)) for _ in range(max(work.at_once))]
        _serve(tables, name, model, (NONE,), prompts, work, options)
    work = replace(work, prompt_tokens=16) if options.quick else Workload(AT_ONCE, 128, OUTPUT_TOKENS, ROUNDS)
    for dtype in (torch.bfloat16, torch.float32) if options.device.type == "cuda" else (torch.float32,):
        shipped = load_model(SHIPPED_MODEL, dtype, options.device)
        _serve(tables, "tiny-mla", shipped, SHIPPED_SIDES, own_prompts(work), work, options)
    for title, rows in tables.items():
        report.table(title, rows)


def _serve(
    tables: dict[str, list[TableRow]],
    name: str,
    model: LoadedModel,
    sides: Sequence[str],
    prompts: list[Prompt],
    work: Workload,
    options: BenchOptions,
) -> None:
    """Add a model's rows for every side and number of requests. `as_plain` counts answers equal to the first side's."""
    plain: dict[int, list[list[int]]] = {}
    for side in sides:
        served = Served(name, side, model, work, options)
        for at_once in work.at_once:
            figures, said = served.answers(prompts[:at_once])
            same = sum(map(eq, said, plain.setdefault(at_once, said)))
            tables["serving"].append(figures | {"as_plain": same})
            if at_once in WATCHED:
                tables["a decode step of the whole engine"].append(served.step(prompts[:at_once]))
        if side == CAUSAL:
            tables["step times as planners know them"] += served.step_times()


def own_prompts(work: Workload) -> list[Prompt]:
    """Cut prompts from this repository's source: Python that the shipped model was not trained on."""
    text = "".join(file.read_text() for file in sorted(Path(engine.__file__).parent.rglob("*.py")))
    tokens = AutoTokenizer.from_pretrained(SHIPPED_MODEL)(text)["input_ids"]
    starts = range(0, max(work.at_once) * work.prompt_tokens, work.prompt_tokens)
    assert len(tokens) >= starts.stop, "too little source for so many prompts"
    return [tuple(tokens[start : start + work.prompt_tokens]) for start in starts]


@contextmanager
def _errors_noted(report: BenchReport, what: str) -> Iterator[None]:
    """Record a RuntimeError as a note instead of raising it."""
    try:
        yield
    except RuntimeError as error:
        report.note(f"{what}: {str(error).splitlines()[0]}")
