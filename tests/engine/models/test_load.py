import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.attention import PagedGQA, PagedMLA
from engine.models import load_model
from engine.pages import CacheLayout
from tests.checkpoints import EOS

CPU = torch.device("cpu")


def test_every_attention_module_is_ours(deepseek_v3: Path, qwen3_sliding: Path) -> None:
    for path, family in ((deepseek_v3, PagedMLA), (qwen3_sliding, PagedGQA)):
        module = load_model(path, torch.float32, CPU).module

        attentions = [layer.self_attn for layer in module.model.layers]
        assert all(isinstance(getattr(attention, "paged", attention), family) for attention in attentions)


def test_every_layer_has_its_entries_in_the_group_of_its_window(qwen3_sliding: Path) -> None:
    model = load_model(qwen3_sliding, torch.float32, CPU)
    layout = CacheLayout.of(model.entries, 64)

    layers = {name: sorted({e.layer for e in group.entries}) for name, group in layout.groups.items()}
    assert layers == {"full": [0, 1], "window70": [2, 3]}


def test_the_cache_has_the_dtype_of_the_weights(deepseek_v3: Path) -> None:
    model = load_model(deepseek_v3, torch.bfloat16, CPU)

    assert {entry.dtype for entry in model.entries} == {torch.bfloat16}
    assert model.fingerprint["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({"eos_token_id": [7, 9]}, (7, 9)), ({"eos_token_id": 5}, (5,)), ({}, (EOS,)), (None, (EOS,))],
)
def test_end_of_text_comes_from_the_generation_config_first(
    deepseek_v3: Path, tmp_path: Path, generation: dict[str, object] | None, expected: tuple[int, ...]
) -> None:
    path = shutil.copytree(deepseek_v3, tmp_path / "model")
    (path / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))

    assert load_model(path, torch.float32, CPU).eos_token_ids == expected


def test_nothing_asks_for_a_gradient(qwen3: Path) -> None:
    module = load_model(qwen3, torch.float32, CPU).module

    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training
