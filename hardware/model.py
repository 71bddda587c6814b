"""A model as arithmetic: what its weights and cache weigh and what a token computes, from config.json alone."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from hardware.attention import Attention, CachePrecision, CsaCost, GqaCost, Indexer, IndexPrecision, MlaCost

MODELS = Path(__file__).parent / "models"
STORED = {"fp4": 0.5 + 1 / 32, "fp8": 1.0 + 4 / 128**2, "bf16": 2.0, "fp32": 4.0}
"""Bytes of a weight: MXFP4 has a byte of scale for 32 of them, fp8 a float32 for a block of 128 x 128."""
DTYPES: Mapping[str, CachePrecision] = {"bfloat16": "bf16", "float16": "bf16", "float32": "fp32"}
HfConfig = Mapping[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class FeedForward:
    """`common` parameters that every token uses: a dense MLP, or shared experts and router; and of `experts` with
    `expert` parameters each, every token uses `chosen`."""

    common: int
    experts: int = 0
    chosen: int = 0
    expert: int = 0

    def touched(self, tokens: float) -> float:
        """Experts that so many tokens use, if they choose evenly and each for itself."""
        return self.experts * (1 - (1 - self.chosen / self.experts) ** tokens) if self.experts else 0.0


@dataclass(frozen=True)
class Layer:
    attention: Attention
    feed_forward: FeedForward
    hyper_connections: int = 0  # parameters


@dataclass(frozen=True)
class Model:
    """`dense`, `routed`: the precision that weights are stored in, those of routed experts apart. `hidden` is the width
    of the residual stream. `mtp`: next-token layers of the checkpoint, which are not in `layers`."""

    name: str
    hidden: int
    vocab: int
    tied: bool
    layers: tuple[Layer, ...]
    dense: str
    routed: str
    mtp: int = 0

    @classmethod
    def of(
        cls, source: str | Path, cache: CachePrecision | None = None, index: IndexPrecision | None = None
    ) -> "Model":
        """Read a checkpoint's directory, a config.json, or a file of hardware/models/ by its name. `cache` and `index`:
        precisions other than the family's usual ones. Raise ConfigError that names file and key."""
        file = _file(source)
        try:
            content = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise ConfigError(f"{file}: cannot be read as JSON ({error})") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: holds no JSON object")
        name = file.parent.name if file.name == "config.json" else file.stem
        try:
            return _parsed(name, content.get("text_config", content), cache, index)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{file}: {what}") from None

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding; a token uses one row of it."""
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @cached_property
    def common(self) -> int:
        """Parameters of all layers that every token uses."""
        return sum(
            layer.attention.parameters + layer.feed_forward.common + layer.hyper_connections for layer in self.layers
        )

    @cached_property
    def parameters(self) -> int:
        experts = sum(layer.feed_forward.experts * layer.feed_forward.expert for layer in self.layers)
        return self.common + experts + self.embedding + (0 if self.tied else self.head)

    @cached_property
    def active_parameters(self) -> int:
        """Return the parameters that one token is multiplied with, head included, and its row of the embedding."""
        chosen = sum(layer.feed_forward.chosen * layer.feed_forward.expert for layer in self.layers)
        return self.common + chosen + self.head + self.hidden

    @cached_property
    def routed_bytes(self) -> float:
        experts = sum(layer.feed_forward.experts * layer.feed_forward.expert for layer in self.layers)
        return experts * STORED[self.routed]

    @cached_property
    def weight_bytes(self) -> float:
        """All weights as stored. Embedding and head stay in two bytes where the rest is narrower."""
        ends = (self.embedding + (0 if self.tied else self.head)) * max(2.0, STORED[self.dense])
        return self.common * STORED[self.dense] + self.routed_bytes + ends

    def touched_bytes(self, tokens: float) -> float:
        """Bytes of weights that a step of so many tokens reads."""
        experts = sum(n * kind.touched(tokens) * kind.expert for kind, n in self.feed_forwards.items())
        head = self.head * max(2.0, STORED[self.dense])
        return self.common * STORED[self.dense] + experts * STORED[self.routed] + head

    def cache_bytes(self, context: int) -> dict[str, float]:
        """Bytes of one request's cache by group: full (grows), window, compressor."""
        total = {"full": 0.0, "window": 0.0, "compressor": 0.0}
        for layer in self.layers:
            for entry in layer.attention.cache:
                total[entry.group] += entry.at(context)
        return total

    @property
    def growing_bytes(self) -> float:
        """Bytes that each token more adds to a request's cache, in the long run."""
        entries = (entry for layer in self.layers for entry in layer.attention.cache)
        return sum(entry.size / entry.tokens for entry in entries if entry.window is None)

    def kept_bytes(self, context: int) -> float:
        """Bytes of one request's cache without the compressors' inputs: what papers count."""
        found = self.cache_bytes(context)
        return found["full"] + found["window"]

    def read_bytes(self, context: int, queries: int = 1) -> float:
        """Bytes of cache that a step reads for one request with so many new tokens."""
        return sum(n * kind.read_bytes(context, queries) for kind, n in self.attentions.items())

    @cached_property
    def attentions(self) -> dict[Attention, int]:
        """Return the number of layers of each kind of attention."""
        return dict(Counter(layer.attention for layer in self.layers))

    @cached_property
    def feed_forwards(self) -> dict[FeedForward, int]:
        """Return the number of layers of each kind of feed-forward."""
        return dict(Counter(layer.feed_forward for layer in self.layers))

    def operations(self, context: int) -> float:
        """Operations of one token that has so many before it."""
        return 2.0 * self.active_parameters + sum(n * kind.operations(context) for kind, n in self.attentions.items())


def known_models() -> list[str]:
    return sorted(file.stem for file in MODELS.glob("*.json"))


def _file(source: str | Path) -> Path:
    path = Path(source)
    for file in (path / "config.json", path):
        if file.is_file():
            return file
    named = MODELS / f"{source}.json"
    if named.is_file():
        return named
    known = ", ".join(known_models())
    raise ConfigError(f"{source}: neither a directory with a config.json nor such a file, nor one of {known}")


def _parsed(name: str, config: HfConfig, cache: CachePrecision | None, index: IndexPrecision | None) -> Model:
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise ConfigError(f"{name}: model_type {family!r} is not counted here; {', '.join(FAMILIES)} are")
    dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), "bf16")
    quantised = (config.get("quantization_config") or {}).get("quant_method") == "fp8"
    dense = "fp8" if quantised else dtype
    expert_dtype = config.get("expert_dtype") or (config.get("quantization_config") or {}).get("expert_dtype")
    usual: CachePrecision = "fp8" if quantised and family in ("deepseek_v32", "deepseek_v4") else dtype
    layers = tuple(FAMILIES[family](config, cache or usual, index))
    if len(layers) != config["num_hidden_layers"]:
        raise ValueError(f"num_hidden_layers is {config['num_hidden_layers']}, and {len(layers)} kinds are listed")
    return Model(
        name=name,
        hidden=config["hidden_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
        layers=layers,
        dense=dense,
        routed="fp4" if expert_dtype == "fp4" else dense,
        mtp=config.get("num_nextn_predict_layers") or 0,
    )


def _mlp(config: HfConfig, width: int) -> int:
    return 3 * int(config["hidden_size"]) * width


def _moe(config: HfConfig, experts: int, chosen: int, shared: int = 0) -> FeedForward:
    expert = _mlp(config, config["moe_intermediate_size"])
    return FeedForward(shared * expert + config["hidden_size"] * experts, experts, chosen, expert)


def _gqa(config: HfConfig, cache: CachePrecision, index: object) -> Iterable[Layer]:
    heads = config["num_attention_heads"]
    attention = GqaCost(
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        precision=cache,
    )
    dense = FeedForward(_mlp(config, config["intermediate_size"]))
    sparse_from = set(config.get("mlp_only_layers") or ())
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    for layer, kind in enumerate(kinds):
        moe = config.get("num_experts") and layer not in sparse_from
        moe = moe and (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0
        ffn = _moe(config, config["num_experts"], config["num_experts_per_tok"]) if moe else dense
        window = config["sliding_window"] if kind == "sliding_attention" else None
        yield Layer(replace(attention, window=window), ffn)


def _gemma4(config: HfConfig, cache: CachePrecision, index: object) -> Iterable[Layer]:
    """Global layers have heads of their own, and may use keys as values."""
    if config.get("hidden_size_per_layer_input"):
        raise ValueError("hidden_size_per_layer_input: per-layer embeddings are not counted here")
    if config.get("enable_moe_block"):
        raise ValueError("enable_moe_block: Gemma's mixture beside a dense MLP is not counted here")
    shared = config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0)
    for layer, kind in enumerate(config["layer_types"]):
        everywhere = kind == "full_attention"
        k_is_v = everywhere and bool(config.get("attention_k_eq_v"))
        attention = GqaCost(
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=(config.get("num_global_key_value_heads") if k_is_v else None) or config["num_key_value_heads"],
            head_dim=(config.get("global_head_dim") if everywhere else None) or config["head_dim"],
            window=None if everywhere else config["sliding_window"],
            shared_kv=k_is_v,
            precision=cache,
        )
        if layer >= shared:
            raise ValueError("num_kv_shared_layers: layers that use another's cache are not counted here")
        yield Layer(attention, FeedForward(_mlp(config, config["intermediate_size"])))


def _mla(config: HfConfig, cache: CachePrecision, index: IndexPrecision | None) -> Iterable[Layer]:
    indexer = None
    if config.get("index_topk"):
        heads, dim = config["index_n_heads"], config["index_head_dim"]
        indexer = Indexer(heads, dim, config["index_topk"], index or ("fp8" if cache == "fp8" else cache))
    attention = MlaCost(
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        q_rank=config.get("q_lora_rank"),
        kv_rank=config["kv_lora_rank"],
        nope=config["qk_nope_head_dim"],
        rope=config["qk_rope_head_dim"],
        v_dim=config["v_head_dim"],
        indexer=indexer,
        precision=cache,
    )
    dense = FeedForward(_mlp(config, config["intermediate_size"]))
    moe = dense
    if config.get("n_routed_experts"):
        shared = config.get("n_shared_experts") or 0
        moe = _moe(config, config["n_routed_experts"], config["num_experts_per_tok"], shared)
    first, every = config.get("first_k_dense_replace") or 0, config.get("moe_layer_freq") or 1
    for layer in range(config["num_hidden_layers"]):
        yield Layer(attention, dense if layer < first or layer % every else moe)


KINDS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def _csa(config: HfConfig, cache: CachePrecision, index: IndexPrecision | None) -> Iterable[Layer]:
    hidden, mult = config["hidden_size"], config.get("hc_mult") or 4
    ratios = config.get("compress_ratios") or [KINDS[kind] for kind in config["layer_types"]]
    heads, dim = config["index_n_heads"], config["index_head_dim"]
    indexer = Indexer(heads, dim, config["index_topk"], index or ("fp4" if cache == "fp8" else cache))
    ffn = _moe(config, config["n_routed_experts"], config["num_experts_per_tok"], config["n_shared_experts"])
    for ratio in ratios[: config["num_hidden_layers"]]:  # the list may go on with next-token layers
        if ratio not in KINDS.values():
            raise ValueError(f"compress_ratios: {ratio} is none of {', '.join(map(str, KINDS.values()))}")
        attention = CsaCost(
            hidden=hidden,
            heads=config["num_attention_heads"],
            head_dim=config["head_dim"],
            rope=config["qk_rope_head_dim"],
            q_rank=config["q_lora_rank"],
            o_groups=config["o_groups"],
            o_rank=config["o_lora_rank"],
            window=config["sliding_window"],
            ratio=ratio,
            indexer=indexer if ratio == 4 else None,
            precision=cache,
        )
        yield Layer(attention, ffn, hyper_connections=2 * mult * (2 + mult) * mult * hidden)


FAMILIES = {
    "llama": _gqa,
    "qwen2": _gqa,
    "qwen3": _gqa,
    "qwen3_moe": _gqa,
    "gemma4_text": _gemma4,
    "deepseek_v2": _mla,
    "deepseek_v3": _mla,
    "kimi_k2": _mla,
    "deepseek_v32": _mla,
    "deepseek_v4": _csa,
}
