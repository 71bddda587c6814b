"""What a step has to read and multiply, against counts made from the checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.ceiling import MachineRates, ModelCost
from engine.models import load_model
from tests.checkpoints import LLAMA, save_random

CPU = torch.device("cpu")


def elements(path: Path, *words: str) -> int:
    """In the tensors of a checkpoint whose names hold any of `words`, which all do without any."""
    tensors = load_file(path / "model.safetensors")
    return sum(t.numel() for name, t in tensors.items() if not words or any(word in name for word in words))


def test_a_step_reads_every_weight_but_the_embedding_and_every_cached_row(qwen3: Path) -> None:
    cost = ModelCost.of(load_model(qwen3, torch.float32, CPU))

    weights = elements(qwen3) - elements(qwen3, "embed_tokens")
    cached = 4 * 2 * 2 * 24  # layers, keys and values, key heads, head size
    # frequencies of the rope are counted too, and what fills the last panel of a packed matrix
    assert weights * 4 <= cost.step_bytes(1, 0) < 1.1 * weights * 4
    assert cost.step_bytes(1, 100) - cost.step_bytes(1, 0) == 100 * cached * 4


def test_a_tied_head_is_read_although_the_embedding_is_not(tmp_path: Path) -> None:
    path = save_random(LLAMA, tmp_path)

    cost = ModelCost.of(load_model(path, torch.float32, CPU))

    assert elements(path) * 4 <= cost.step_bytes(1, 0) < 1.1 * elements(path) * 4


def test_few_tokens_hit_few_experts(deepseek_v3: Path) -> None:
    """Two of eight for the first token; for many tokens, all. The next-token layer's take no part."""
    cost = ModelCost.of(load_model(deepseek_v3, torch.float32, CPU))
    experts = elements(deepseek_v3, "layers.1.mlp.experts.", "layers.2.mlp.experts.") * 4

    assert cost.step_bytes(1000, 0) - cost.step_bytes(1, 0) == pytest.approx(experts * 6 / 8)
    assert cost.step_flops(1, 1) == pytest.approx(cost.step_bytes(1, 0) / 4 * 2)


def test_an_answer_takes_its_prompts_products_and_a_step_for_each_further_token(qwen3: Path) -> None:
    cost = ModelCost.of(load_model(qwen3, torch.float32, CPU))
    slow_memory = MachineRates(read_bytes_per_second=1.0, copy_bytes_per_second=1.0, flops=1e30)
    slow_products = MachineRates(read_bytes_per_second=1e30, copy_bytes_per_second=1.0, flops=1.0)

    assert cost.answer_seconds(slow_memory, 3, 10, 5) == pytest.approx(4 * cost.step_bytes(3, 3 * 12))
    assert cost.answer_seconds(slow_products, 3, 10, 5) == cost.step_flops(30, 3) + 4 * cost.step_flops(3, 3)
