"""Random checkpoints in published formats, with every parameter and buffer randomised: zeros and ones hide errors."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from engine.drafters.mtp import MTPLayer
from train.model.mtp import published_names

Module = TypeVar("Module", bound=nn.Module)

VOCAB = 300
EOS = 256

DEEPSEEK_V3 = DeepseekV3Config(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    max_position_embeddings=1024,
    rope_parameters={
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    eos_token_id=EOS,
    bos_token_id=None,
)

DEEPSEEK_V2 = DeepseekV2Config(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    topk_method="group_limited_greedy",
    first_k_dense_replace=1,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    max_position_embeddings=1024,
    eos_token_id=EOS,
    bos_token_id=None,
)

LLAMA = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    tie_word_embeddings=True,
    eos_token_id=EOS,
    bos_token_id=None,
)

QWEN3 = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    max_position_embeddings=1024,
    eos_token_id=EOS,
    bos_token_id=None,
)

QWEN3_SLIDING = Qwen3Config.from_dict(
    {**QWEN3.to_dict(), "layer_types": None, "use_sliding_window": True, "sliding_window": 70, "max_window_layers": 2}
)


def save_random(config: PretrainedConfig, path: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint directory: config.json, model.safetensors, and a tokenizer of single bytes. DeepSeek-V3's has
    a next-token layer too, as published."""
    torch.manual_seed(seed)
    model = randomised(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).eval().to(dtype)
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    if isinstance(config, DeepseekV3Config):
        layer = dict(published_names(randomised(MTPLayer(config, config.num_hidden_layers)).to(dtype)))
        file = path / "model.safetensors"
        save_file({n: t.contiguous() for n, t in (load_file(file) | layer).items()}, file, metadata={"format": "pt"})
    return path


def randomised(module: Module) -> Module:
    """The same module with other parameters and buffers."""
    for tensor in module.parameters():
        spread = 1.0 if tensor.ndim == 1 else 1.5 * tensor.shape[-1] ** -0.5
        tensor.data = torch.randn_like(tensor) * spread
    for name, buffer in module.named_buffers():
        if "inv_freq" not in name:  # derived from the configuration, not part of a checkpoint
            buffer.data = torch.randn_like(buffer) * 0.2
    return module


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
