import copy

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from engine.attention import PagedGQA
from tests.engine.attention.paging import computed, linear, over_pages, randomise, rms, rotated, softmax_attention

LENGTHS = [1, 16, 17, 100]
SHAPES = [
    # heads, key heads, head size, window
    (4, 2, 24, None),
    (4, 1, 16, None),
    (3, 3, 8, None),
    (4, 2, 24, 20),
    (2, 1, 16, 1),
    (4, 4, 8, 33),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
Shape = tuple[int, int, int, int | None]


def attention(shape: Shape) -> Qwen3Attention:
    heads, key_heads, size, window = shape
    config = Qwen3Config(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=size,
        use_sliding_window=window is not None,
        sliding_window=window,
        layer_types=["full_attention" if window is None else "sliding_attention"],
    )
    torch.manual_seed(heads + size)
    module = Qwen3Attention(config, layer_idx=0)
    randomise(module)
    return module


def paged(shape: Shape) -> PagedGQA:
    return PagedGQA(copy.deepcopy(attention(shape)))


def some_hidden() -> list[Tensor]:
    torch.manual_seed(6)
    return [torch.randn(length, 48) for length in LENGTHS]


def by_formula(module: Qwen3Attention, hidden_SD: Tensor, shape: Shape) -> Tensor:
    """Softmax attention with a norm on each head's query and key, and rope over both halves (float64)."""
    heads, key_heads, size, window = shape
    h = hidden_SD.double()
    pairs = [(i, i + size // 2) for i in range(size // 2)]
    q_SHD = rotated(rms(linear(h, module.q_proj).unflatten(-1, (heads, size)), module.q_norm), pairs)
    k_SGD = rotated(rms(linear(h, module.k_proj).unflatten(-1, (key_heads, size)), module.k_norm), pairs)
    v_SGD = linear(h, module.v_proj).unflatten(-1, (key_heads, size))
    served = [head // (heads // key_heads) for head in range(heads)]
    out_SHD = softmax_attention(q_SHD, k_SGD[:, served], v_SGD[:, served], size**-0.5, window)
    return linear(out_SHD.flatten(1), module.o_proj)


@shapes
def test_attention_follows_the_formulas(computed_by: str, shape: Shape) -> None:
    hidden = some_hidden()

    outputs = over_pages(computed(paged(shape)), hidden, chunks=[])

    for out_SD, hidden_SD in zip(outputs, hidden, strict=True):
        assert torch.allclose(out_SD.double(), by_formula(attention(shape), hidden_SD, shape), atol=2e-5)


@shapes
@pytest.mark.parametrize("chunks", [[1] * 100, [15, 1, 1, 30], [16, 16], [3, 50]], ids=str)
def test_chunks_of_any_size_give_the_same_output(computed_by: str, shape: Shape, chunks: list[int]) -> None:
    hidden = some_hidden()
    whole = over_pages(computed(paged(shape)), hidden, chunks=[])

    cut = over_pages(computed(paged(shape)), hidden, chunks=list(chunks))

    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_a_sliding_layer_keeps_its_entries_in_the_group_of_its_window() -> None:
    assert {entry.group for entry in paged(SHAPES[3]).entries} == {"window20"}
    assert {entry.group for entry in paged(SHAPES[0]).entries} == {"full"}
