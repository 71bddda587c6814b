"""The next-token-prediction (MTP) layer in training: from the state of token i and token i+1 to token i+2.

The layer itself is the drafter's (engine/drafters/mtp.py). B rows, T tokens, D hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from engine.drafters.load import fused_experts
from engine.drafters.mtp import MTPLayer


def initialise(mtp: MTPLayer, std: float) -> None:
    """Draw every matrix from a normal distribution; norms stay one, the router's bias stays zero."""
    for parameter in mtp.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)


def mtp_states(model: DeepseekV3ForCausalLM, mtp: MTPLayer, tokens_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
    """Return states `[B, T-1, D]`: row i, under the main model's head, predicts token i+2.

    `hidden_BTD` is the main model's `last_hidden_state` (after its final norm). No gradient reaches the main model.
    """
    embedding = nn.functional.embedding(tokens_BT[:, 1:], model.model.embed_tokens.weight.detach())
    positions = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)[None]
    rope = model.model.rotary_emb(embedding, positions)
    states_BTD: Tensor = mtp(embedding, hidden_BTD[:, :-1].detach(), attention_mask=None, position_embeddings=rope)
    return states_BTD


def published_names(mtp: MTPLayer) -> Iterator[tuple[str, Tensor]]:
    """Yield the layer's tensors under the names of a DeepSeek-V3 checkpoint, one matrix per expert."""
    prefix = f"model.layers.{mtp.self_attn.layer_idx}."
    for name, tensor in mtp.state_dict().items():
        if name == "mlp.experts.gate_up_proj":
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                yield f"{prefix}mlp.experts.{expert}.gate_proj.weight", gate
                yield f"{prefix}mlp.experts.{expert}.up_proj.weight", up
        elif name == "mlp.experts.down_proj":
            for expert, matrix in enumerate(tensor):
                yield f"{prefix}mlp.experts.{expert}.down_proj.weight", matrix
        else:
            yield prefix + name, tensor


def load_mtp(config: DeepseekV3Config, tensors: dict[str, Tensor]) -> MTPLayer:
    """Build the layer from a checkpoint's tensors, in float32; all of its weights must be there."""
    mtp = MTPLayer(config, config.num_hidden_layers)
    prefix = f"model.layers.{config.num_hidden_layers}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    mtp.load_state_dict(fused_experts(state))
    mtp.float().eval()
    return mtp
