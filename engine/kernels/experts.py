"""A layer's experts in one call: tokens sorted by expert, each expert's matrices read once.

T = tokens, k = experts of a token, E = experts, D = hidden size, I = an expert's inner size
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.native import Experts, Library, lossless, packed


class NativeExperts(nn.Module):
    """In the place of transformers' experts: SiLU of the gate times up, then down."""

    up: Tensor
    down: Tensor

    def __init__(self, experts: Any, library: Library) -> None:
        super().__init__()
        self.num_experts, double, self.hidden = experts.gate_up_proj.shape
        self.inner = double // 2
        matrices = experts.gate_up_proj.detach(), experts.down_proj.detach()
        dtype = torch.bfloat16 if all(map(lossless, matrices)) else torch.float32
        self.register_buffer("up", packed(matrices[0], library.panel, dtype))
        self.register_buffer("down", packed(matrices[1], library.panel, dtype))
        self._call = library.experts[dtype]

    def forward(self, x_TD: Tensor, chosen_Tk: Tensor, share_Tk: Tensor) -> Tensor:
        """Each token's experts, summed with their shares. [T, D]"""
        assert x_TD.dtype == torch.float32
        x_TD, chosen_Tk, share_Tk = x_TD.contiguous(), chosen_Tk.contiguous(), share_Tk.float().contiguous()
        num_tokens, each = chosen_Tk.shape
        out_TD = torch.empty_like(x_TD)
        middle = x_TD.new_empty(num_tokens * each, 2 * self.inner)
        parts = x_TD.new_empty(num_tokens * each, self.hidden)
        self._call(
            ctypes.byref(
                Experts(
                    x=x_TD.data_ptr(),
                    chosen=chosen_Tk.data_ptr(),
                    share=share_Tk.data_ptr(),
                    up=self.up.data_ptr(),
                    down=self.down.data_ptr(),
                    middle=middle.data_ptr(),
                    parts=parts.data_ptr(),
                    out=out_TD.data_ptr(),
                    T=num_tokens,
                    k=each,
                    E=self.num_experts,
                    D=self.hidden,
                    I=self.inner,
                    up_stride=self.up[0].numel(),
                    down_stride=self.down[0].numel(),
                )
            )
        )
        return out_TD


def faster_experts(experts: Any, library: Library | None) -> nn.Module:
    """The same experts, ours if they are of the plain kind."""
    plain = type(experts).__name__ in ("DeepseekV2Experts", "DeepseekV3Experts")
    if plain and library is not None and type(experts.act_fn).__name__ in ("SiLU", "SiLUActivation"):
        weight = experts.gate_up_proj
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            return NativeExperts(experts, library)
    found: nn.Module = experts
    return found
