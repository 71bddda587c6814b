"""Output tokens per second of one replica, compared with transformers' `generate` and continuous batching.

One process without Ray: a prefill and a decode engine, with a LocalTransfer between them. All sides use the same model
in float32, threads, prompts and output lengths, decode greedily and must return the same tokens. Prefill is included.
The random models are stored in bfloat16, as published models are, and computed in float32.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import DeepseekV3Config, PretrainedConfig, Qwen3Config

from bench import reference
from bench.ceiling import MachineRates, ModelCost
from bench.console import TableRow
from bench.shape import BenchOptions, BenchReport, seconds_of
from engine.config import SHIPPED_MODEL, Config
from engine.types import Request, Sampling, StopRules
from local import Pair
from local.build import set_threads
from tests.checkpoints import DEEPSEEK_V3, EOS, QWEN3, save_random

Side = Callable[[list[reference.Prompt], int], list[list[int]]]
ROUNDS = 3
QWEN3_60M = Qwen3Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=14,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    eos_token_id=EOS,
    bos_token_id=None,
)
DEEPSEEK_60M = DeepseekV3Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    moe_intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    q_lora_rank=256,
    kv_lora_rank=512,
    qk_nope_head_dim=64,
    qk_rope_head_dim=64,
    v_head_dim=64,
    max_position_embeddings=4096,
    eos_token_id=EOS,
    bos_token_id=None,
)
AT_ONCE = (1, 4, 16, 32)
AHEAD_OF_GENERATE = {"qwen3-60m": dict(zip(AT_ONCE, (3.5, 3.2, 1.8, 1.4), strict=True))}
AHEAD_ELSEWHERE = 2.5


def save_published(config: PretrainedConfig, path: Path) -> Path:
    """Save random weights in bfloat16, as models are published."""
    return save_random(config, path, dtype=torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class UniformWorkload:
    """`concurrency` requests at once, with equally long prompts and outputs."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def prompts(self, vocab: int, seed: int) -> list[reference.Prompt]:
        rng = random.Random(seed)
        return [tuple(rng.randrange(vocab) for _ in range(self.prompt_tokens)) for _ in range(self.concurrency)]

    def rate(self, seconds: float) -> float:
        """Output tokens per second."""
        return self.concurrency * self.output_tokens / seconds


class Ours:
    """A prefill and a decode engine, called like the other sides."""

    def __init__(self, path: Path, options: BenchOptions) -> None:
        engine = {"device": str(options.device), "threads": options.threads, "cache_bytes": "512MiB"}
        config = Config.parse({"model": {"path": path}, "prefill": engine, "decode": {"default": engine}})
        set_threads(config.prefill, config)
        self.pair = Pair(config)
        self._asked = 0

    def __call__(self, prompts: list[reference.Prompt], output_tokens: int) -> list[list[int]]:
        first, self._asked = self._asked, self._asked + len(prompts)
        stop = StopRules(max_tokens=output_tokens, ignore_eos=True)
        requests = [
            Request(id=str(first + i), prompt=prompt, sampling=Sampling(), stop=stop)
            for i, prompt in enumerate(prompts)
        ]
        return list(self.pair.generate(requests).values())


def run(report: BenchReport) -> None:
    options = report.options
    workloads = [UniformWorkload(concurrency=n, prompt_tokens=128, output_tokens=128) for n in AT_ONCE]
    rates = MachineRates.measured(options)
    report.ceiling("memory read, GB/s", rates.read_bytes_per_second / 1e9)
    report.ceiling("float32 product, Gflop/s", rates.flops / 1e9)
    with TemporaryDirectory() as folder:
        if options.quick:
            workloads = [UniformWorkload(concurrency=n, prompt_tokens=20, output_tokens=6) for n in (1, 4)]
            random_models = {"deepseek_v3": DEEPSEEK_V3, "qwen3": QWEN3}
        else:
            random_models = {"qwen3-60m": QWEN3_60M, "deepseek-v3-60m": DEEPSEEK_60M}
        paths = {} if options.quick else {"tiny-mla": SHIPPED_MODEL}
        paths |= {name: save_published(config, Path(folder) / name) for name, config in random_models.items()}
        rows = [row for name, path in paths.items() for row in _compared(report, rates, name, path, workloads)]
    report.table("output tokens per second", rows)
    for row in rows:
        _goals(report, **row)


def _compared(
    report: BenchReport, rates: MachineRates, name: str, path: Path, workloads: list[UniformWorkload]
) -> Iterator[TableRow]:
    """Yield a row for each workload of one model."""
    device, widest = report.options.device, workloads[-1]
    ours = Ours(path, report.options)
    generate = reference.Generate(reference.load(path, device))
    model = ours.pair.builder.model
    cost = ModelCost.of(model)
    for workload in workloads:
        least = cost.answer_seconds(rates, workload.concurrency, workload.prompt_tokens, workload.output_tokens)
        report.ceiling(f"{name}, {workload.concurrency} at once, tok/s", workload.rate(least))
    batching = reference.ContinuousBatching(
        reference.load(path, device), requests=widest.concurrency, total_tokens=widest.total_tokens
    )
    sides: dict[str, Side] = {"ours": ours, "generate": generate}
    if fault := batching.fault():
        report.note(f"{name}: transformers' continuous batching cannot run this model: {fault}")
    else:
        sides["continuous"] = batching
    for workload in workloads:
        yield {"model": name, **_measured(report, name, workload, sides, generate, model.config.vocab_size)}


def _measured(
    report: BenchReport,
    name: str,
    workload: UniformWorkload,
    sides: dict[str, Side],
    generate: reference.Generate,
    vocab: int,
) -> TableRow:
    """Check that all sides return the same tokens, then time them."""
    prompts = workload.prompts(vocab, seed=1)
    expected = generate.answers(prompts, workload.output_tokens)
    ties = 0
    for side in sides.values():
        with awake(side):
            ties += expected.ties_with(side(prompts, workload.output_tokens))

    def timed(side: Side) -> Callable[[list[reference.Prompt]], float]:
        def seconds(prompts: list[reference.Prompt]) -> float:
            with awake(side):
                return seconds_of(lambda: side(prompts, workload.output_tokens))

        return seconds

    num_rounds = 1 if report.options.quick else ROUNDS
    rounds = [workload.prompts(vocab, seed) for seed in range(2, 3 + num_rounds)]
    what = f"{name}, {workload.concurrency} at once"
    samples = report.alternately(what, {name: timed(side) for name, side in sides.items()}, rounds)
    row: TableRow = {"at_once": workload.concurrency}
    for name in ("ours", "generate", "continuous"):
        row[f"{name}_tok_s"] = workload.rate(samples.median(name)) if name in sides else None
    for name in ("generate", "continuous"):
        row[f"over_{name}"] = samples.speed_up("ours", name) if name in sides else None
    return row | {"ties": ties}


def awake(side: Side) -> AbstractContextManager[None]:
    """Return the context in which a side can be called."""
    return side.awake() if isinstance(side, reference.ContinuousBatching) else nullcontext()


def _goals(
    report: BenchReport, model: str, at_once: int, over_generate: float, over_continuous: float | None, **_: object
) -> None:
    what = f"{model}, {at_once} at once, output tok/s over"
    wanted = AHEAD_OF_GENERATE.get(model, {}).get(at_once, AHEAD_ELSEWHERE)
    report.goal(f"{what} generate", over_generate, wanted, "x")
    if over_continuous is not None:
        report.goal(f"{what} continuous batching", over_continuous, 1.0, "x")
