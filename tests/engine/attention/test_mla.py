import copy

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from engine.attention import PagedMLA
from tests.engine.attention.paging import computed, linear, over_pages, randomise, rms, rotated, softmax_attention

LENGTHS = [1, 16, 17, 70]
SHAPES = [
    # heads, nope, rope, value, latent, q_lora, interleave
    (4, 16, 8, 12, 16, 24, True),
    (1, 8, 4, 8, 32, None, False),
    (3, 12, 16, 20, 8, None, True),
    (2, 128, 64, 128, 512, 64, True),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def attention(shape: tuple[int, ...]) -> DeepseekV3Attention:
    heads, nope, rope, value, latent, q_lora, interleave = shape
    config = DeepseekV3Config(
        hidden_size=48,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
        kv_lora_rank=latent,
        q_lora_rank=q_lora,
        rope_interleave=bool(interleave),
    )
    torch.manual_seed(sum(shape[:5]))
    module = DeepseekV3Attention(config, layer_idx=0)
    randomise(module)
    return module


def paged(shape: tuple[int, ...], absorbed_queries: int | None = None) -> PagedMLA:
    module = PagedMLA(copy.deepcopy(attention(shape)))
    if absorbed_queries is not None:
        module.absorbed_queries = absorbed_queries
    return module


def some_hidden() -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.randn(length, 48) for length in LENGTHS]


def by_formula(module: DeepseekV3Attention, hidden_SD: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Equations 1 to 11 of the DeepSeek-V2 report (arXiv 2405.04434, section 2.1), one sequence, float64."""
    heads, nope, rope, value, latent, q_lora, interleave = shape
    h = hidden_SD.double()
    compressed = rms(linear(h, module.q_a_proj), module.q_a_layernorm) if q_lora else h
    q_SHD = linear(compressed, module.q_b_proj if q_lora else module.q_proj).unflatten(-1, (heads, nope + rope))
    c_SL, k_rope_SP = linear(h, module.kv_a_proj_with_mqa).split([latent, rope], -1)
    kv_SHD = linear(rms(c_SL, module.kv_a_layernorm), module.kv_b_proj).unflatten(-1, (heads, nope + value))
    half = rope // 2
    pairs = [(2 * i, 2 * i + 1) if interleave else (i, i + half) for i in range(half)]
    q_SHD = torch.cat([q_SHD[..., :nope], rotated(q_SHD[..., nope:], pairs)], -1)
    k_rope_SHP = rotated(k_rope_SP[:, None], pairs).expand(-1, heads, -1)
    k_SHD = torch.cat([kv_SHD[..., :nope], k_rope_SHP], -1)
    out_SHV = softmax_attention(q_SHD, k_SHD, kv_SHD[..., nope:], (nope + rope) ** -0.5, window=None)
    return linear(out_SHV.flatten(1), module.o_proj)


@shapes
@pytest.mark.parametrize("absorbed_queries", [0, 10**6], ids=["expanded", "absorbed"])
def test_absorbed_and_expanded_attention_follow_the_formulas(
    computed_by: str, shape: tuple[int, ...], absorbed_queries: int
) -> None:
    hidden = some_hidden()

    outputs = over_pages(computed(paged(shape, absorbed_queries)), hidden, chunks=[])

    for out_SD, hidden_SD in zip(outputs, hidden, strict=True):
        assert torch.allclose(out_SD.double(), by_formula(attention(shape), hidden_SD, shape), atol=2e-5)


@shapes
@pytest.mark.parametrize("chunks", [[1] * 70, [15, 1, 1, 30], [16, 16], [3, 20]], ids=str)
def test_chunks_of_any_size_give_the_same_output(computed_by: str, shape: tuple[int, ...], chunks: list[int]) -> None:
    """The module chooses between absorbing and expanding by the size of a chunk."""
    hidden = some_hidden()
    whole = over_pages(computed(paged(shape)), hidden, chunks=[])

    cut = over_pages(computed(paged(shape)), hidden, chunks=list(chunks))

    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_absorbing_is_chosen_while_it_costs_less() -> None:
    """Costs are multiplications per key and head, for the sizes of DeepSeek-V3."""
    nope, rope, value, latent = 128, 64, 128, 512
    limit = paged(SHAPES[-1]).absorbed_queries

    def absorbed_is_cheaper(queries: int) -> bool:
        return queries * (2 * latent + rope) <= queries * (nope + rope + value) + latent * (nope + value)

    assert absorbed_is_cheaper(limit)
    assert not absorbed_is_cheaper(limit + 1)


def test_absorbing_is_always_chosen_where_latents_are_small() -> None:
    assert paged(SHAPES[2]).absorbed_queries > 10**9


def test_the_cache_holds_one_latent_and_one_rope_key_for_all_heads() -> None:
    (entry,) = paged(SHAPES[0]).entries

    assert entry.shape == (16 + 8,)
