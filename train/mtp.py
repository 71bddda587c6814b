"""The next-token-prediction (MTP) layer: from the state of token i and token i+1 to token i+2.

Equations 21 to 23 of the DeepSeek-V3 report (arXiv 2412.19437), under the names of the published checkpoint:
layer N of an N-layer model. B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm


class MtpLayer(DeepseekV3DecoderLayer):  # type: ignore[misc]
    """A decoder layer (always MoE) behind a projection of embedding and hidden state.

    Embedding and head are the main model's own; they are passed in and never trained from here.
    """

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config, config.num_hidden_layers)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = DeepseekV3RMSNorm(size, eps=eps)
        self.hnorm = DeepseekV3RMSNorm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": DeepseekV3RMSNorm(size, eps=eps)})

    def initialise(self, std: float) -> None:
        """Normal weights in every matrix; norms stay one, the router's bias stays zero."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std)

    def forward(self, embedding_BTD: Tensor, hidden_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """`embedding` of token i+1 and post-norm `hidden` of token i -> normed state `[B, T, D]` for token i+2.

        Attention is causal over the row; `rope` is cosine and sine at the positions of the tokens i+1.
        """
        joined = torch.cat([self.enorm(embedding_BTD), self.hnorm(hidden_BTD)], dim=-1)
        state_BTD = super().forward(self.eh_proj(joined), attention_mask=None, position_embeddings=rope)
        normed_BTD: Tensor = self.shared_head["norm"](state_BTD)
        return normed_BTD


def mtp_states(model: DeepseekV3ForCausalLM, mtp: MtpLayer, tokens_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
    """States `[B, T-1, D]`: row i, under the main model's head, predicts token i+2.

    `hidden_BTD` is the main model's `last_hidden_state` (after its final norm). No gradient reaches the main model.
    """
    embedding = nn.functional.embedding(tokens_BT[:, 1:], model.model.embed_tokens.weight.detach())
    positions = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)[None]
    rope = model.model.rotary_emb(embedding, positions)
    states_BTD: Tensor = mtp(embedding, hidden_BTD[:, :-1].detach(), rope)
    return states_BTD


def published_names(mtp: MtpLayer) -> Iterator[tuple[str, Tensor]]:
    """The layer's tensors as a DeepSeek-V3 checkpoint names them, one matrix per expert."""
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


def load_mtp(config: DeepseekV3Config, tensors: dict[str, Tensor]) -> MtpLayer:
    """The layer from a checkpoint's tensors, in float32; every one of its weights must be there."""
    mtp = MtpLayer(config)
    prefix = f"model.layers.{config.num_hidden_layers}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    experts = range(config.n_routed_experts)
    gate_up = [
        torch.cat([state.pop(f"mlp.experts.{e}.{half}_proj.weight") for half in ("gate", "up")]) for e in experts
    ]
    state["mlp.experts.gate_up_proj"] = torch.stack(gate_up)
    state["mlp.experts.down_proj"] = torch.stack([state.pop(f"mlp.experts.{e}.down_proj.weight") for e in experts])
    mtp.load_state_dict(state)
    mtp.float().eval()
    return mtp
