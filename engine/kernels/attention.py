"""Attention as programs: projections, norms, rotation and cache writes, attention over pages where they lie.

MLA is absorbed here, however many tokens a row has (engine/attention/mla.py): expanding would need the matrices in
another order too, and saves little before contexts of thousands of tokens.

T = tokens, H = query heads, G = key heads, D = head size, N = nope size, P = rope size, V = value size, L = latent size
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.attention.gqa import PagedGQA
from engine.attention.mla import PagedMLA
from engine.batch import Batch
from engine.kernels.linear import NativeLinear, Packed
from engine.kernels.native import Library
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import (
    HALVES,
    KEYS,
    NOWHERE,
    PAIRS,
    PAIRS_TO_HALVES,
    VALUES,
    Attend,
    Columns,
    Heads,
    Op,
    Program,
    X,
    Y,
    step_of,
)
from engine.pages import PageStore, Slab


class NativeAttention(nn.Module, ABC):
    """In the place of a paged attention module, over the same pages."""

    def __init__(self, paged: Any, library: Library) -> None:
        super().__init__()
        self.paged, self.entries, self.library = paged, paged.entries, library
        self._keys = [entry.key for entry in self.entries]
        self._call = PagedProgram(self, library, lambda columns: self.operations(X, Y, NOWHERE, columns))
        columns = Columns()
        self._remember = Program(library, self.writing(X, columns), columns.width)

    @abstractmethod
    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        """Write the tokens' entries, so many numbers behind the slabs that the call brings along."""

    @abstractmethod
    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """y = attention(x) + add."""

    def slabs(self, store: PageStore) -> tuple[Slab, Slab]:
        """Of keys and of values: the same one where they lie together."""
        return store.slab(self._keys[0]), store.slab(self._keys[-1])

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, batch: Batch, store: PageStore, **_: object
    ) -> tuple[Tensor, None]:
        return self._call(hidden_states, position_embeddings, batch, store), None

    def write_cache(self, hidden_TD: Tensor, position_embeddings: Any, batch: Batch, store: PageStore) -> None:
        """Write the tokens' entries into their slots."""
        step = step_of(batch, position_embeddings)
        call = step.aim(self.entries[0].group, *self.slabs(store))
        hidden_TD = hidden_TD.contiguous()
        call.x = hidden_TD.data_ptr()
        self._remember(call)


class PagedProgram:
    """A program that writes entries and attends, from [1, T, D] to [1, T, D]."""

    def __init__(self, attention: NativeAttention, library: Library, operations: Callable[[Columns], list[Op]]) -> None:
        columns = Columns()
        self._slabs, self._group = attention.slabs, attention.entries[0].group
        self._program = Program(library, operations(columns), columns.width)

    def __call__(self, x_1TD: Tensor, positions: Any, batch: Batch, store: PageStore) -> Tensor:
        call = step_of(batch, positions).aim(self._group, *self._slabs(store))
        assert x_1TD.dtype == torch.float32
        x_1TD = x_1TD.contiguous()
        y_1TD = torch.empty_like(x_1TD)
        call.x, call.y = x_1TD.data_ptr(), y_1TD.data_ptr()
        self._program(call)
        return y_1TD


class NativeGQA(NativeAttention):
    def __init__(self, paged: PagedGQA, library: Library) -> None:
        projected: Any = paged.q_proj
        self._query_numbers = projected.out_features
        super().__init__(paged, library)

    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        paged = self.paged
        keys, values = columns.take(paged.k_proj.out_features), columns.take(paged.v_proj.out_features)
        return [
            paged.k_proj.product(x, keys),
            paged.v_proj.product(x, values, wait=False),
            self._heads(keys, KEYS, paged.k_norm, turned=True, y_at=keys_at),
            self._heads(values, VALUES, None, turned=False, y_at=values_at, wait=False),
        ]

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        paged = self.paged
        queries, attended = columns.take(self._query_numbers), columns.take(self._query_numbers)
        project_k, project_v, write_k, write_v = self.writing(x, columns)
        project_k.wait = write_k.wait = False
        attend = Attend(
            x=queries,
            y=attended,
            H=self._query_numbers // paged.head_dim,
            G=paged.num_key_heads,
            D=paged.head_dim,
            E=paged.head_dim,
            shared=False,
            scale=paged.scaling,
        )
        turn = self._heads(queries, queries, paged.q_norm, turned=True)
        project = [paged.q_proj.product(x, queries), project_k, project_v]
        return [*project, turn, write_k, write_v, attend, paged.o_proj.product(attended, y, add)]

    def _heads(self, x: int, y: int, norm: Any, turned: bool, y_at: int = 0, wait: bool = True) -> Heads:
        """Heads of the place `x` to column `y_at` of `y`, normed if `norm` is one."""
        size = self.paged.head_dim
        row = self._query_numbers if y >= 0 else self.paged.num_key_heads * size
        weight = norm.weight if isinstance(norm, NativeRMSNorm) else None
        return Heads(
            x=x,
            y=y,
            H=row // size,
            size=size,
            x_row=row,
            x_head=size,
            x_at=0,
            y_row=row,
            y_head=size,
            y_at=y_at,
            normed=0 if weight is None else size,
            turn_at=0,
            turned=size if turned else 0,
            rotation=HALVES,
            weight=weight,
            eps=0.0 if weight is None else norm.variance_epsilon,
            wait=wait,
        )


class NativeMLA(NativeAttention):
    ROTATIONS: ClassVar = {"halves": HALVES, "pairs to halves": PAIRS_TO_HALVES, "pairs": PAIRS}

    def __init__(self, paged: PagedMLA, library: Library) -> None:
        self._query_numbers = paged.num_heads * (paged.nope + paged.rope)
        super().__init__(paged, library)

    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        paged = self.paged
        entry = paged.latent + paged.rope
        place = columns.take(entry)
        write = Heads(
            x=place,
            y=KEYS,
            H=1,
            size=entry,
            x_row=entry,
            x_head=0,
            x_at=0,
            y_row=entry,
            y_head=0,
            y_at=keys_at,
            normed=paged.latent,
            turn_at=paged.latent,
            turned=paged.rope,
            rotation=self.ROTATIONS[paged.rotation],
            weight=paged.kv_a_layernorm.weight,
            eps=paged.kv_a_layernorm.variance_epsilon,
        )
        return [paged.kv_a_proj_with_mqa.product(x, place), write]

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        paged, heads = self.paged, self.paged.num_heads
        latents, entry = heads * paged.latent, paged.latent + paged.rope
        queries, attended = columns.take(self._query_numbers), columns.take(heads * paged.value)
        absorbed, seen = columns.take(heads * entry), columns.take(latents)
        project, write = self.writing(x, columns)
        project.wait = write.wait = False
        if paged.compressed_queries:
            small = columns.take(paged.q_a_proj.out_features)
            norm = paged.q_a_layernorm.norm(small, small)
            asking = [paged.q_a_proj.product(x, small), project, norm, write, paged.q_b_proj.product(small, queries)]
        else:
            write.wait = True
            asking = [paged.q_proj.product(x, queries), project, write]
        attend = Attend(x=absorbed, y=seen, H=heads, G=1, D=entry, E=paged.latent, shared=True, scale=paged.scaling)
        turn = self._rope_of(queries, queries, turned=paged.rope, y_row=self._query_numbers, y_at=paged.nope)
        return [
            *asking,
            turn,
            paged.w_uk.by_head(queries, self._query_numbers, absorbed, heads * entry),
            self._rope_of(queries, absorbed, turned=0, y_row=heads * entry, y_at=paged.latent, wait=False),
            attend,
            paged.w_uv.by_head(seen, latents, attended, heads * paged.value),
            paged.o_proj.product(attended, y, add),
        ]

    def _rope_of(self, x: int, y: int, turned: int, y_row: int, y_at: int, wait: bool = True) -> Heads:
        """The rope part of the queries at `x`, to columns `y_at` of each head at `y`."""
        paged = self.paged
        return Heads(
            x=x,
            y=y,
            H=paged.num_heads,
            size=paged.rope,
            x_row=self._query_numbers,
            x_head=paged.nope + paged.rope,
            x_at=paged.nope,
            y_row=y_row,
            y_head=y_row // paged.num_heads,
            y_at=y_at,
            normed=0,
            turn_at=0,
            turned=turned,
            rotation=self.ROTATIONS[paged.rotation],
            weight=None,
            eps=0.0,
            wait=wait,
        )


def faster_attention(paged: Any, library: Library) -> nn.Module:
    """The same attention, ours if all of its projections are."""
    projections = [child for name, child in paged.named_children() if name.endswith(("_proj", "_with_mqa"))]
    norms = [child for name, child in paged.named_children() if "norm" in name]
    plain = all(isinstance(child, NativeLinear) for child in projections)
    if not plain or not all(isinstance(child, NativeRMSNorm | nn.Identity) for child in norms):
        return paged  # type: ignore[no-any-return]
    if isinstance(paged, PagedMLA):
        for name in ("w_uk", "w_uv"):
            setattr(paged, name, Packed(getattr(paged, name).weight, library))
        return NativeMLA(paged, library)
    return NativeGQA(paged, library)
