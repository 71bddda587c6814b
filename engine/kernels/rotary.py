"""Rotation angles from a table, where transformers computes them anew in every step with a dozen calls."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.batch import Positions

FIRST_LENGTH = 1024


class TabledRotary(nn.Module):
    """Replaces any transformers rotary embedding whose angles depend on the position alone (preflight.py refuses
    the others). The table grows to the next power of two beyond the last position."""

    def __init__(self, rotary: Callable[[Tensor, Tensor], Positions]) -> None:
        super().__init__()
        self.rotary = rotary
        self._table_length = 0
        self._tables: Positions = ()

    def forward(self, x: Tensor, position_ids: Tensor) -> Positions:
        """Return the position embeddings of `position_ids` int64[1, T], in the dtype of `x`."""
        self._extend(x, int(position_ids.max()) + 1)
        positions_T = position_ids[0]
        if isinstance(self._tables, Tensor):
            return self._tables.index_select(1, positions_T)
        return tuple(table.index_select(1, positions_T) for table in self._tables)

    def _extend(self, x: Tensor, end: int) -> None:
        if end <= self._table_length:
            return
        self._table_length = max(FIRST_LENGTH, 1 << end.bit_length())
        with torch.inference_mode(False), torch.no_grad():
            like = torch.empty(0, dtype=x.dtype, device=x.device)
            self._tables = self.rotary(like, torch.arange(self._table_length, device=x.device)[None])
