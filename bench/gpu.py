"""Eager torch on a GPU: the reference's tokens, and how near a step comes to the card's memory bandwidth.

One command for a machine with a GPU that has torch, transformers, pydantic and accelerate, and neither Ray, NIXL nor
rich: `python -m bench gpu`. There are no kernels of ours in this: every figure is eager torch. With `--device cpu
--quick` it tries itself where there is no GPU.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import DeepseekV3Config, PretrainedConfig, Qwen3Config

from bench import reference
from bench.ceiling import ModelCost, Rates, synchronize
from bench.shape import Options, Report
from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.config import Config
from engine.models import LoadedModel, load_model
from engine.models.preflight import free_memory, gib
from engine.pages import CacheLayout, Pages, PageStore
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.checkpoints import DEEPSEEK_V3, LLAMA, QWEN3, VOCAB, save_random

HOW = "eager torch"
PAGE_TOKENS = 64
PARITY = {"deepseek_v3": DEEPSEEK_V3, "qwen3": QWEN3, "llama": LLAMA}
PROMPT_TOKENS = (1, 63, 64, 65, 150, 400)
ROUNDS = 20
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
STEPS = [(r, q, context) for context in (1024, 8192) for r in (1, 8, 32) for q in (1, 5)]


def run(report: Report) -> None:
    options = report.options
    if options.device.type == "cpu" and not options.quick:
        report.note("not yet measured: no GPU at hand (`--device cpu --quick` tries the benchmark itself)")
        return
    rates = Rates.measured(options)
    report.ceiling("copy in the device's memory, read + written, GB/s", rates.copy_bytes_per_second / 1e9)
    report.ceiling("float32 product, Gflop/s", rates.flops / 1e9)
    report.note(f"every figure is {HOW}; weights are random")
    with TemporaryDirectory() as folder:
        parity = [_parity(Path(folder) / name, name, config, options) for name, config in PARITY.items()]
        report.table("greedy tokens against transformers, float32", parity)
        models = {"qwen3": QWEN3} if options.quick else STEP_MODELS
        rows = []
        for name, config in models.items():
            path = save_random(config, Path(folder) / f"step_{name}")
            dtype = torch.float32 if options.device.type == "cpu" else torch.bfloat16
            rows += _steps(report, name, load_model(path, dtype, options.device), rates)
        report.table(f"steps, {HOW}", rows)
    answers, same = (sum(row[key] for row in parity) for key in ("answers", "same"))
    report.goal(f"answers of {len(parity)} families that are transformers' own to the end", same, answers, "answers")


def _parity(path: Path, name: str, config: PretrainedConfig, options: Options) -> dict[str, Any]:
    """All prompts at once through both engines, one at a time through transformers on the same device."""
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


@dataclass(frozen=True)
class Step:
    """`requests` rows of `tokens` each, after `context` cached ones."""

    requests: int
    tokens: int
    context: int

    def batch(self, pages: Pages, vocab: int) -> Batch:
        rng = random.Random(0)
        rows = []
        for i in range(self.requests):
            end = self.context + self.tokens
            tables = pages.open(f"{self}-{i}")
            assert pages.extend(tables, end)
            tokens = [rng.randrange(vocab) for _ in range(self.tokens)]
            rows.append(Row(tokens, self.context, tables, num_logits=self.tokens))
        return Batch.of(rows, pages.layout, pages.store.device)


def _steps(report: Report, name: str, model: LoadedModel, rates: Rates) -> list[dict[str, Any]]:
    """A row for each step: its time, and the bytes per second at which it read weights and cached rows."""
    quick = report.options.quick
    steps = [Step(*sizes) for sizes in ([(1, 1, 64), (4, 3, 128)] if quick else STEPS)]
    layout = CacheLayout.of(model.entries, PAGE_TOKENS)
    cost = ModelCost.of(model)
    rows = []
    for step in steps:
        num_pages = step.requests * -(-(step.context + step.tokens) // PAGE_TOKENS)
        cache_bytes = num_pages * sum(group.page_bytes for group in layout.groups.values())
        if cache_bytes > free_memory(model.device) / 2:
            report.note(f"{name}: {step} needs {gib(cache_bytes)} of pages, which do not fit")
            continue
        pages = Pages(layout, PageStore(layout, dict.fromkeys(layout.groups, num_pages), model.device))
        seconds = _step_seconds(model, pages, step, rounds=2 if quick else ROUNDS)
        num_tokens = step.requests * step.tokens
        num_bytes = cost.step_bytes(num_tokens, step.requests * (step.context + step.tokens))
        rows.append(
            {
                "model": name,
                "parameters": model.num_parameters,
                "dtype": str(model.dtype).removeprefix("torch."),
                "requests": step.requests,
                "tokens_each": step.tokens,
                "context": step.context,
                "step_ms": seconds * 1e3,
                "gb_s": num_bytes / seconds / 1e9,
                "of_copy_bandwidth": num_bytes / seconds / rates.copy_bytes_per_second,
                "how": HOW,
            }
        )
    return rows


def _step_seconds(model: LoadedModel, pages: Pages, step: Step, rounds: int) -> float:
    """The median time of a forward from the batch on, the device waited for."""
    backend = TorchBackend(model.module, pages.store)
    batch = step.batch(pages, model.config.vocab_size)
    seconds = []
    for _ in range(1 + rounds):
        synchronize(model.device)
        started = time.perf_counter()
        backend.forward(batch)
        synchronize(model.device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
