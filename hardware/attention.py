"""The cost of one layer's attention, by kind: weights, cache, bytes that a step reads of it, and operations.

    GqaCost   K and V heads for each token; all of the context, or a window of it
    MlaCost   one latent and one rope key for all heads (DeepSeek-V2, V3); with an indexer (V3.2) only the best `topk`
              tokens are read, and all index keys
    CsaCost   a window of 128 tokens, and one compressed entry for every 4 or 128 tokens before (DeepSeek-V4); at 4 an
              indexer chooses among them

Entries as vLLM and SGLang store them: an fp8 latent keeps its rope part in bfloat16 and has scales beside it.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

CachePrecision = Literal["fp8", "bf16", "fp32"]
IndexPrecision = Literal["fp4", "fp8", "bf16", "fp32"]
WIDTH = {"fp4": 0.5, "fp8": 1.0, "bf16": 2.0, "fp32": 4.0}


@dataclass(frozen=True)
class CacheEntry:
    """Something a layer keeps: `size` bytes for every `tokens` tokens. `window` None keeps it for all of the context;
    otherwise for the last so many tokens. `group`: full, window, or compressor (inputs not compressed yet)."""

    name: str
    size: float
    tokens: int = 1
    window: int | None = None
    group: Literal["full", "window", "compressor"] = "full"

    def at(self, context: int) -> float:
        """Bytes of one request with so many tokens."""
        if self.window is not None:
            return min(context, self.window) * self.size / self.tokens
        return context // self.tokens * self.size


class Attention(Protocol):
    @property
    def parameters(self) -> int:
        """The number of parameters of its matrices, without norms and biases."""
        ...

    @property
    def shards(self) -> int:
        """Into how many parts its cache can be cut, by heads; what is cut further is replicated."""
        ...

    @property
    def cache(self) -> tuple[CacheEntry, ...]: ...

    def read_bytes(self, context: int, queries: int = 1) -> float:
        """Bytes of cache that a step reads for one request with so many tokens in cache and so many new ones."""
        ...

    def operations(self, context: int) -> float:
        """Operations of one new token on the cache; its matrices are counted by `parameters`."""
        ...


def seen(context: int, window: int | None) -> int:
    return context if window is None else min(context, window)


@dataclass(frozen=True)
class GqaCost:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    shared_kv: bool = False  # keys are values, too (Gemma 4's global layers): one projection; both are cached
    precision: CachePrecision = "bf16"

    @property
    def parameters(self) -> int:
        kv = 1 if self.shared_kv else 2
        return self.hidden * self.head_dim * (2 * self.heads + kv * self.kv_heads)

    @property
    def shards(self) -> int:
        return self.kv_heads

    @property
    def cache(self) -> tuple[CacheEntry, ...]:
        size = 2 * self.kv_heads * self.head_dim * WIDTH[self.precision]
        return (CacheEntry("kv", size, window=self.window, group="full" if self.window is None else "window"),)

    def read_bytes(self, context: int, queries: int = 1) -> float:
        return self.cache[0].size * seen(context, self.window)

    def operations(self, context: int) -> float:
        return 4.0 * self.heads * self.head_dim * seen(context, self.window)


@dataclass(frozen=True)
class Indexer:
    """DeepSeek's lightning indexer: scores every entry with small heads and keeps the best `topk`."""

    heads: int
    head_dim: int
    topk: int
    precision: IndexPrecision

    @property
    def key_bytes(self) -> float:
        """A key, and 4 bytes of scales where it is quantised."""
        return self.head_dim * WIDTH[self.precision] + (4 if self.precision in ("fp4", "fp8") else 0)

    def operations(self, entries: int) -> float:
        return 2.0 * self.heads * self.head_dim * entries


def latent_bytes(values: int, rope: int, precision: CachePrecision, scale_bytes: int) -> float:
    """An entry of `values` + `rope` elements; as fp8 with the rope part in bfloat16, and scales."""
    if precision == "fp8":
        return values + 2 * rope + scale_bytes
    return (values + rope) * WIDTH[precision]


@dataclass(frozen=True)
class MlaCost:
    hidden: int
    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    v_dim: int
    indexer: Indexer | None = None
    precision: CachePrecision = "bf16"

    @property
    def parameters(self) -> int:
        wide = self.heads * (self.nope + self.rope)
        queries = self.hidden * wide if self.q_rank is None else self.q_rank * (self.hidden + wide)
        keys = self.hidden * (self.kv_rank + self.rope) + self.kv_rank * self.heads * (self.nope + self.v_dim)
        return queries + keys + self.heads * self.v_dim * self.hidden + self._indexer_parameters

    @property
    def _indexer_parameters(self) -> int:
        if self.indexer is None:
            return 0
        wide = self.indexer.heads * self.indexer.head_dim
        return (self.q_rank or self.hidden) * wide + self.hidden * (self.indexer.head_dim + self.indexer.heads)

    @property
    def shards(self) -> int:
        return 1  # the latent is every head's

    @property
    def cache(self) -> tuple[CacheEntry, ...]:
        scales = 4 * -(-self.kv_rank // 128)  # float32, one for 128 values
        latent = CacheEntry("latent", latent_bytes(self.kv_rank, self.rope, self.precision, scales))
        return (latent, CacheEntry("index key", self.indexer.key_bytes)) if self.indexer else (latent,)

    def read_bytes(self, context: int, queries: int = 1) -> float:
        latent = self.cache[0].size
        if self.indexer is None:
            return context * latent
        chosen = min(context, self.indexer.topk * queries)  # at worst each query chooses others
        return context * self.indexer.key_bytes + chosen * latent

    def operations(self, context: int) -> float:
        entries = context if self.indexer is None else min(context, self.indexer.topk)
        absorbed = 2.0 * self.heads * (2 * self.kv_rank + self.rope) * entries
        return absorbed + (self.indexer.operations(context) if self.indexer else 0.0)


@dataclass(frozen=True)
class CsaCost:
    """`ratio` 0: the window alone. The compressor's inputs that are not compressed yet are kept in float32: at 4 those
    of two groups, which overlap, at 128 those of one."""

    hidden: int
    heads: int
    head_dim: int
    rope: int
    q_rank: int
    o_groups: int
    o_rank: int
    window: int
    ratio: int
    indexer: Indexer | None = None
    precision: CachePrecision = "fp8"

    @property
    def parameters(self) -> int:
        queries = self.q_rank * (self.hidden + self.heads * self.head_dim)
        output = self.heads * self.head_dim * self.o_rank + self.o_groups * self.o_rank * self.hidden
        total = queries + self.hidden * self.head_dim + output
        total += self.hidden * self._inputs(self.head_dim) if self.ratio else 0
        if self.indexer is not None:
            wide = self.indexer.heads * self.indexer.head_dim
            total += self.q_rank * wide + self.hidden * (self.indexer.heads + self._inputs(self.indexer.head_dim))
        return total

    def _inputs(self, dim: int) -> int:
        """Elements of a token before it is compressed: what is pooled, and the weight of each."""
        return 2 * dim * (2 if self.ratio == 4 else 1)

    @property
    def shards(self) -> int:
        return 1

    @property
    def cache(self) -> tuple[CacheEntry, ...]:
        values = self.head_dim - self.rope
        size = latent_bytes(values, self.rope, self.precision, 8 * -(-values // 512))  # a byte for 64 values, padded
        entries = [CacheEntry("window", size, window=self.window, group="window")]
        if self.ratio:
            entries.append(CacheEntry("compressed", size, tokens=self.ratio))
            pending = 2 * self.ratio if self.ratio == 4 else self.ratio
            wide = 4.0 * self._inputs(self.head_dim)
            entries.append(CacheEntry("inputs", wide, window=pending, group="compressor"))
            if self.indexer is not None:
                entries.append(CacheEntry("index key", self.indexer.key_bytes, tokens=self.ratio))
                wide = 4.0 * self._inputs(self.indexer.head_dim)
                entries.append(CacheEntry("index inputs", wide, window=pending, group="compressor"))
        return tuple(entries)

    def read_bytes(self, context: int, queries: int = 1) -> float:
        entry, compressed = self.cache[0].size, context // self.ratio if self.ratio else 0
        read = seen(context, self.window) * entry
        if self.indexer is None:
            return read + compressed * entry
        return read + compressed * self.indexer.key_bytes + min(compressed, self.indexer.topk * queries) * entry

    def operations(self, context: int) -> float:
        compressed = context // self.ratio if self.ratio else 0
        chosen = compressed if self.indexer is None else min(compressed, self.indexer.topk)
        attended = 4.0 * self.heads * self.head_dim * (seen(context, self.window) + chosen)
        return attended + (self.indexer.operations(compressed) if self.indexer else 0.0)
