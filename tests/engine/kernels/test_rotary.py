"""Angles from a table are those that transformers computes."""

import torch
from transformers import DeepseekV2Config, PretrainedConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.kernels.rotary import FIRST_LENGTH, TabledRotary
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA

KINDS = {
    DeepseekV3RotaryEmbedding: DEEPSEEK_V3,  # yarn, which scales
    LlamaRotaryEmbedding: LLAMA,
    DeepseekV2RotaryEmbedding: DEEPSEEK_V2,  # complex
}


def rotary(kind: type[torch.nn.Module], config: PretrainedConfig) -> torch.nn.Module:
    assert isinstance(config, DeepseekV2Config) == (kind is DeepseekV2RotaryEmbedding)
    return kind(config)


def test_a_grown_table_has_the_same_values() -> None:
    for kind, config in KINDS.items():
        plain = rotary(kind, config)
        tabled = TabledRotary(plain)
        x = torch.zeros(1, 1, 1)
        for positions in ([0], [5, 3, 3, 900], [FIRST_LENGTH], [FIRST_LENGTH - 1, 5 * FIRST_LENGTH], [7]):
            ids = torch.tensor([positions])
            found, expected = tabled(x, ids), plain(x, ids)
            if isinstance(expected, torch.Tensor):
                found, expected = (found,), (expected,)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), kind
