"""DSpark written down from the formulas, one request at a time, dense, with nothing of the product's in it.

T = tokens of the context, K = rows of the block, D = hidden size, V = vocabulary
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from engine.drafters.load import fused_experts


@dataclass
class Drafted:
    hidden_KD: Tensor
    logits_KV: Tensor
    tokens: list[int]
    confidence_K: Tensor


class Reference:
    """DSpark, weights by their published names."""

    def __init__(self, target: Path, drafter: Path, config: dict[str, Any]) -> None:
        self.target = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.weights = {name: tensor.float() for name, tensor in load_file(drafter / "model.safetensors").items()}
        self.config = config
        own = AutoConfig.for_model(**{key: config[key] for key in config if key != "architectures"})
        self.rotary = type(self.target.model.rotary_emb)(own)

    @torch.inference_mode()
    def draft(self, tokens: list[int]) -> Drafted:
        """The greedy block after `tokens`, whose last one is the anchor."""
        config = self.config
        states = self.target(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        taps = torch.cat([states[i + 1][0, :-1] for i in config["target_layer_ids"]], dim=-1)
        context_TD = self.norm("hidden_norm", taps @ self.weights["fc.weight"].T)
        embed = self.target.get_input_embeddings().weight
        block = [tokens[-1], *[config["mask_token_id"]] * (config["block_size"] - 1)]
        x_KD = embed[torch.tensor(block)]
        for layer in range(config["num_hidden_layers"]):
            x_KD = self.layer(f"layers.{layer}", context_TD, x_KD)
        return self.heads(self.norm("norm", x_KD), tokens[-1])

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale = (x.double().pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return (x.double() * scale).float() * self.weights[f"{name}.weight"]

    def layer(self, name: str, context_TD: Tensor, x_KD: Tensor) -> Tensor:
        h_KD = self.norm(f"{name}.input_layernorm", x_KD)
        attend = self.latent if self.config["model_type"] == "deepseek_v3" else self.grouped
        x_KD = x_KD + attend(f"{name}.self_attn", context_TD, h_KD)
        h_KD = self.norm(f"{name}.post_attention_layernorm", x_KD)
        gate, up = self.project(f"{name}.mlp.gate_proj", h_KD), self.project(f"{name}.mlp.up_proj", h_KD)
        return x_KD + self.project(f"{name}.mlp.down_proj", torch.nn.functional.silu(gate) * up)

    def project(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return x @ self.weights[f"{name}.weight"].T + (0 if bias is None else bias)

    def grouped(self, name: str, context_TD: Tensor, h_KD: Tensor) -> Tensor:
        """Each query head against its group's key head; q and k normed by head, then turned (half against half)."""
        size, heads = self.config["head_dim"], self.config["num_attention_heads"]
        both = torch.cat([context_TD, h_KD])
        q = self.norm(f"{name}.q_norm", self.project(f"{name}.q_proj", h_KD).unflatten(-1, (-1, size)))
        k = self.norm(f"{name}.k_norm", self.project(f"{name}.k_proj", both).unflatten(-1, (-1, size)))
        v = self.project(f"{name}.v_proj", both).unflatten(-1, (-1, size))
        start = len(context_TD)
        q, k = self.turned(q, start, pairs=False), self.turned(k, 0, pairs=False)
        group = heads // k.shape[1]
        out = [softmaxed(q[:, i] @ k[:, i // group].T * size**-0.5) @ v[:, i // group] for i in range(heads)]
        return self.project(f"{name}.o_proj", torch.cat(out, dim=-1))

    def latent(self, name: str, context_TD: Tensor, h_KD: Tensor) -> Tensor:
        """Keys and values of every head made from latents; one rope key for all heads, turned pair by pair."""
        c = self.config
        heads, nope, rope, value = (
            c["num_attention_heads"],
            c["qk_nope_head_dim"],
            c["qk_rope_head_dim"],
            c["v_head_dim"],
        )
        both, start = torch.cat([context_TD, h_KD]), len(context_TD)
        q = self.project(f"{name}.q_b_proj", self.norm(f"{name}.q_a_layernorm", self.project(f"{name}.q_a_proj", h_KD)))
        q = q.unflatten(-1, (heads, -1))
        latent, k_rope = self.project(f"{name}.kv_a_proj_with_mqa", both).split([c["kv_lora_rank"], rope], dim=-1)
        kv = self.project(f"{name}.kv_b_proj", self.norm(f"{name}.kv_a_layernorm", latent)).unflatten(-1, (heads, -1))
        q_rope = self.turned(q[..., nope:], start, pairs=True)
        k_rope = self.turned(k_rope[:, None], 0, pairs=True)[:, 0]
        scale = self.target.model.layers[0].self_attn.scaling
        out = []
        for i in range(heads):
            scores = q[:, i, :nope] @ kv[:, i, :nope].T + q_rope[:, i] @ k_rope.T
            out.append(softmaxed(scores * scale) @ kv[:, i, nope : nope + value])
        return self.project(f"{name}.o_proj", torch.cat(out, dim=-1))

    def turned(self, x: Tensor, start: int, pairs: bool) -> Tensor:
        """[S, heads, P] turned by position; angles and their scale are transformers'. Only dot products matter, so
        the order in which pairs come out does not."""
        positions = torch.arange(start, start + len(x))[None]
        cos, sin = (a[0, :, None] for a in self.rotary(x, positions))
        if pairs:
            x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    def heads(self, hidden_KD: Tensor, anchor: int) -> Drafted:
        w, kind, rank = self.weights, self.config["markov_head_type"], self.config["markov_rank"]
        base_KV = hidden_KD @ self.target.get_output_embeddings().weight.T
        before, state = anchor, torch.zeros(rank)
        tokens, logits, confidence = [], [], []
        for h_D, base_V in zip(hidden_KD, base_KV, strict=True):
            features, bias_V = h_D, torch.zeros_like(base_V)
            if rank:
                e = w["markov_head.markov_w1.weight"][before]
                out = e
                if kind == "gated":
                    out = torch.sigmoid(self.project("markov_head.gate_proj", torch.cat([h_D, e]))) * e
                if kind == "rnn":
                    joint = self.project("markov_head.joint_proj", torch.cat([state, e, h_D]))
                    g, candidate, o = joint[:rank].sigmoid(), joint[rank : 2 * rank].tanh(), joint[2 * rank :].tanh()
                    state, out = g * state + (1 - g) * candidate, o
                bias_V = w["markov_head.markov_w2.weight"] @ out
                if self.config["confidence_head_with_markov"]:
                    features = torch.cat([h_D, e])
            if self.config["enable_confidence_head"]:
                confidence.append(self.project("confidence_head.proj", features).sigmoid()[0])
            logits.append(base_V + bias_V)
            before = int(logits[-1].argmax())
            tokens.append(before)
        return Drafted(hidden_KD, torch.stack(logits), tokens, torch.tensor(confidence))


def softmaxed(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1)


class MTPReference:
    """transformers' layer over the whole sequence, its weights given by hand: its own loader knows layer 61 only."""

    def __init__(self, path: Path) -> None:
        self.main = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        layers = self.main.config.num_hidden_layers
        self.mtp = MtpModel(self.main, 1).eval()
        prefix = f"model.layers.{layers}."
        tensors = load_file(path / "model.safetensors")
        state = fused_experts({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        known = dict([*self.mtp.layers[0].named_parameters(), *self.mtp.layers[0].named_buffers()])
        outside = {"enorm.weight", "hnorm.weight", "eh_proj.weight"}
        for name, tensor in state.items():
            own = name if name in outside else f"mtp_block.{name}"
            own = "post_norm.weight" if name == "shared_head.norm.weight" else own
            known[own].data.copy_(tensor)

    @torch.no_grad()
    def draft(self, tokens: list[int], count: int) -> tuple[list[int], list[float]]:
        """What follows `tokens`, of which the target has not seen the last, and how sure the layer is."""
        ids = list(tokens)
        hidden = self.main.model(torch.tensor([tokens[:-1]]), use_cache=False).last_hidden_state
        drafts, confidences = [], []
        for _ in range(count):
            state = self._state(hidden, ids)
            probabilities: Tensor = self.main.lm_head(state[0, -1]).softmax(-1)
            drafts.append(int(probabilities.argmax()))
            confidences.append(float(probabilities.max()))
            hidden, ids = torch.cat([hidden, state[:, -1:]], dim=1), [*ids, drafts[-1]]
        return drafts, confidences

    def _state(self, hidden: Tensor, ids: list[int]) -> Tensor:
        positions = torch.arange(1, len(ids))[None]
        state: Tensor = self.mtp.forward_layer(0, hidden, positions, None, input_ids=torch.tensor([ids[1:]]))
        return state
