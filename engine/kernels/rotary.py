"""Rotation angles looked up; transformers computes those of every step anew, in a dozen calls."""

from typing import Any

import torch
from torch import Tensor, nn

FIRST_REACH = 1024


class TabledRotary(nn.Module):
    """In the place of any transformers rotary embedding whose angles depend on nothing but the position (preflight.py
    refuses the others). The table grows to twice the last position that was asked for."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary
        self._reach = 0
        self._tables: Tensor | tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`int64[1, T]` -> what the rotary embedding makes of it, of the dtype of `x`"""
        self._reaching(x, int(position_ids.max()) + 1)
        positions_T = position_ids[0]
        if isinstance(self._tables, Tensor):
            return self._tables.index_select(1, positions_T)
        return tuple(table.index_select(1, positions_T) for table in self._tables)

    def _reaching(self, x: Tensor, end: int) -> None:
        if end <= self._reach:
            return
        self._reach = max(FIRST_REACH, 1 << end.bit_length())
        with torch.inference_mode(False), torch.no_grad():
            like = torch.empty(0, dtype=x.dtype, device=x.device)
            self._tables = self.rotary(like, torch.arange(self._reach, device=x.device)[None])
