"""Attention as programs: projections, norms, rotation and cache writes, then attention over pages in place.

MLA is always absorbed here, however many tokens a row has (engine/attention/mla.py): expanding would need the matrices
in a second order, and saves little below contexts of thousands of tokens.

T = tokens, H = query heads, G = key heads, D = head size, N = nope size, P = rope size, V = value size, L = latent size
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from engine.attention import PagedAttention
from engine.attention.gqa import PagedGQA
from engine.attention.mla import PagedMLA
from engine.batch import Batch, Positions
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
    call_of,
)
from engine.pages import PageStore, Slab

Module = TypeVar("Module", bound=nn.Module)


class NativeAttention(nn.Module, ABC):
    """Replaces a paged attention module and uses the same pages."""

    def __init__(self, paged: PagedAttention, library: Library) -> None:
        super().__init__()
        self.paged, self.entries, self.library = paged, paged.entries, library
        self._keys = [entry.key for entry in self.entries]
        self._attend = PagedProgram(self, library, lambda columns: self.operations(X, Y, NOWHERE, columns))
        columns = Columns()
        self._write = Program(library, self.writing(X, columns), columns.width)

    @abstractmethod
    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        """Return the operations that write the tokens' entries, offset by some elements from the call's slabs."""

    @abstractmethod
    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        """Return the operations of y = attention(x) + add."""

    def slabs(self, store: PageStore) -> tuple[Slab, Slab]:
        """Return the slabs of keys and of values: one and the same where both share an entry (MLA)."""
        return store.slab(self._keys[0]), store.slab(self._keys[-1])

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Positions,
        batch: Batch,
        store: PageStore,
        **_: object,
    ) -> tuple[Tensor, None]:
        return self._attend(hidden_states, position_embeddings, batch, store), None

    def write_cache(self, hidden_TD: Tensor, positions: Positions, batch: Batch, store: PageStore) -> None:
        """Write the tokens' entries into their slots."""
        call = call_of(batch, positions, self.entries[0].group, *self.slabs(store))
        hidden_TD = hidden_TD.contiguous()
        call.x = hidden_TD.data_ptr()
        self._write(call, store.scratch)

    def _part(self, name: str, kind: type[Module]) -> Module:
        part = getattr(self.paged, name)
        assert isinstance(part, kind), f"{name} is a {type(part).__name__}"
        return part

    def _linear(self, name: str) -> NativeLinear:
        return self._part(name, NativeLinear)


class PagedProgram:
    """Runs a program that writes entries and attends: [1, T, D] -> [1, T, D]."""

    def __init__(self, attention: NativeAttention, library: Library, operations: Callable[[Columns], list[Op]]) -> None:
        columns = Columns()
        self._slabs, self._group = attention.slabs, attention.entries[0].group
        self._program = Program(library, operations(columns), columns.width)

    def __call__(self, x_1TD: Tensor, positions: Positions, batch: Batch, store: PageStore) -> Tensor:
        call = call_of(batch, positions, self._group, *self._slabs(store))
        assert x_1TD.dtype == torch.float32
        x_1TD = x_1TD.contiguous()
        y_1TD = torch.empty_like(x_1TD)
        call.x, call.y = x_1TD.data_ptr(), y_1TD.data_ptr()
        self._program(call, store.scratch)
        return y_1TD


class NativeGQA(NativeAttention):
    paged: PagedGQA

    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        project_k, project_v = self._linear("k_proj"), self._linear("v_proj")
        keys, values = columns.take(project_k.out_features), columns.take(project_v.out_features)
        return [
            project_k.product(x, keys),
            project_v.product(x, values, wait=False),
            self._heads(keys, KEYS, self.paged.k_norm, turned=True, y_at=keys_at),
            self._heads(values, VALUES, None, turned=False, y_at=values_at, wait=False),
        ]

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        paged, project_q = self.paged, self._linear("q_proj")
        queries, attended = columns.take(project_q.out_features), columns.take(project_q.out_features)
        project_k, project_v, write_k, write_v = self.writing(x, columns)
        project_k.wait = write_k.wait = False
        attend = Attend(
            x=queries,
            y=attended,
            H=project_q.out_features // paged.head_dim,
            G=paged.num_key_heads,
            D=paged.head_dim,
            E=paged.head_dim,
            shared=False,
            scale=paged.scaling,
        )
        turn = self._heads(queries, queries, paged.q_norm, turned=True)
        project = [project_q.product(x, queries), project_k, project_v]
        return [*project, turn, write_k, write_v, attend, self._linear("o_proj").product(attended, y, add)]

    def _heads(self, x: int, y: int, norm: nn.Module | None, turned: bool, y_at: int = 0, wait: bool = True) -> Heads:
        """Move the heads at operand `x` to column `y_at` of `y`, through `norm` unless it is an identity."""
        size = self.paged.head_dim
        row = self._linear("q_proj").out_features if y >= 0 else self.paged.num_key_heads * size
        rms = norm if isinstance(norm, NativeRMSNorm) else None
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
            normed=size if rms else 0,
            turn_at=0,
            turned=size if turned else 0,
            rotation=HALVES,
            weight=rms.weight if rms else None,
            eps=rms.variance_epsilon if rms else 0.0,
            wait=wait,
        )


class NativeMLA(NativeAttention):
    ROTATIONS: ClassVar = {"halves": HALVES, "pairs to halves": PAIRS_TO_HALVES, "pairs": PAIRS}
    paged: PagedMLA

    @property
    def _query_numbers(self) -> int:
        return self.paged.num_heads * (self.paged.nope + self.paged.rope)

    def writing(self, x: int, columns: Columns, keys_at: int = 0, values_at: int = 0) -> list[Op]:
        paged, norm = self.paged, self._part("kv_a_layernorm", NativeRMSNorm)
        size = paged.latent + paged.rope
        entry = columns.take(size)
        write = Heads(
            x=entry,
            y=KEYS,
            H=1,
            size=size,
            x_row=size,
            x_head=0,
            x_at=0,
            y_row=size,
            y_head=0,
            y_at=keys_at,
            normed=paged.latent,
            turn_at=paged.latent,
            turned=paged.rope,
            rotation=self.ROTATIONS[paged.rotation],
            weight=norm.weight,
            eps=norm.variance_epsilon,
        )
        return [self._linear("kv_a_proj_with_mqa").product(x, entry), write]

    def operations(self, x: int, y: int, add: int, columns: Columns) -> list[Op]:
        paged, heads = self.paged, self.paged.num_heads
        w_uk, w_uv = self._part("w_uk", Packed), self._part("w_uv", Packed)
        latents, entry = heads * paged.latent, paged.latent + paged.rope
        queries, attended = columns.take(self._query_numbers), columns.take(heads * paged.value)
        absorbed, seen = columns.take(heads * entry), columns.take(latents)
        project, write = self.writing(x, columns)
        project.wait = write.wait = False
        if paged.compressed_queries:
            compress, expand = self._linear("q_a_proj"), self._linear("q_b_proj")
            small = columns.take(compress.out_features)
            norm = self._part("q_a_layernorm", NativeRMSNorm).norm(small, small)
            query = [compress.product(x, small), project, norm, write, expand.product(small, queries)]
        else:
            write.wait = True
            query = [self._linear("q_proj").product(x, queries), project, write]
        attend = Attend(x=absorbed, y=seen, H=heads, G=1, D=entry, E=paged.latent, shared=True, scale=paged.scaling)
        turn = self._rope_of(queries, queries, turned=paged.rope, y_row=self._query_numbers, y_at=paged.nope)
        return [
            *query,
            turn,
            w_uk.by_head(queries, self._query_numbers, absorbed, heads * entry),
            self._rope_of(queries, absorbed, turned=0, y_row=heads * entry, y_at=paged.latent, wait=False),
            attend,
            w_uv.by_head(seen, latents, attended, heads * paged.value),
            self._linear("o_proj").product(attended, y, add),
        ]

    def _rope_of(self, x: int, y: int, turned: int, y_row: int, y_at: int, wait: bool = True) -> Heads:
        """Move the rope part of the queries at operand `x` to column `y_at` of each head at `y`."""
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


def faster_attention(paged: nn.Module, library: Library) -> nn.Module:
    """Return a native replacement if all projections and norms of `paged` are native, else `paged` itself."""
    projections = [child for name, child in paged.named_children() if name.endswith(("_proj", "_with_mqa"))]
    norms = [child for name, child in paged.named_children() if "norm" in name]
    native = all(isinstance(child, NativeLinear) for child in projections)
    if not native or not all(isinstance(child, NativeRMSNorm | nn.Identity) for child in norms):
        return paged
    if isinstance(paged, PagedMLA):
        for name in ("w_uk", "w_uv"):
            setattr(paged, name, Packed(getattr(paged, name).weight, library))
        return NativeMLA(paged, library)
    assert isinstance(paged, PagedGQA)
    return NativeGQA(paged, library)
