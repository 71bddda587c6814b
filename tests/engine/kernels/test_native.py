"""Every build of kernels.cpp that this processor runs, against torch: operation by operation, then whole models."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, PretrainedConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP, DeepseekV3MoE, DeepseekV3RMSNorm

from engine.attention import attach
from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.kernels import native, use_kernels
from engine.kernels.feedforward import NativeMLP, NativeMoE
from engine.kernels.layer import NativeLayer
from engine.kernels.linear import NativeLinear
from engine.kernels.native import Library, lossless, packed, unpacked
from engine.kernels.norm import NativeRMSNorm
from engine.kernels.program import GroupPointers
from engine.pages import CacheLayout, Entry, Pages, PageStore, Tables
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING, randomised
from tests.kernels import LIBRARIES, chosen, each_build

CPU = torch.device("cpu")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def test_kernels_that_can_run_here_were_built() -> None:
    """Where there is a compiler and AVX2, installing the package built the kernels."""
    if shutil.which("g++") is None or not native._processor_flags().issuperset(native.LEVELS["v3"]):
        pytest.skip("no compiler, or no AVX2")
    assert LIBRARIES
    assert native.library() is not None


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@each_build
@pytest.mark.parametrize("short", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (31, 7), (32, 64), (33, 65), (200, 130)])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 6, 7, 11, 12, 13, 25, 96, 97, 200])
def test_product(library: Library, short: bool, num_out: int, num_in: int, rows: int) -> None:
    linear = nn.Linear(num_in, num_out, bias=rows % 2 == 0)
    with torch.no_grad():
        linear.weight.copy_(seeded(num_out, num_in))
        if short:
            linear.weight.copy_(linear.weight.bfloat16())
    ours = NativeLinear(linear, library)
    assert (ours.panels.dtype == torch.bfloat16) == lossless(linear.weight) == short or num_in * num_out == 1
    x = seeded(rows, num_in, seed=1)
    torch.testing.assert_close(ours(x), linear(x), **CLOSE)
    assert torch.equal(ours.weight, linear.weight)


@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.sampled_from([16, 32]), st.booleans())
def test_panels_hold_the_matrices(count: int, num_out: int, num_in: int, panel: int, short: bool) -> None:
    weight = seeded(count, num_out, num_in).bfloat16().float()
    panels = packed(weight, panel, torch.bfloat16 if short else torch.float32)
    assert torch.equal(unpacked(panels, num_out), weight)
    assert torch.equal(unpacked(panels[0], num_out), weight[0])


@each_build
@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 256, 500])
def test_norm(library: Library, size: int) -> None:
    norm = DeepseekV3RMSNorm(size, eps=1e-5)
    norm.weight.data.copy_(seeded(size))
    for shape in ((0,), (1,), (3, 5), (300,)):
        x = 10 * seeded(*shape, 2 * size, seed=2)[..., ::2]
        torch.testing.assert_close(NativeRMSNorm(norm, library)(x), norm(x), **CLOSE)


def through(library: Library, module: nn.Module) -> Any:
    """What `use_kernels` makes of it."""
    parent = nn.ModuleDict({"only": copy.deepcopy(module)})
    with chosen(library):
        use_kernels(parent)
    return parent["only"]


@each_build
@pytest.mark.parametrize(("hidden", "inner"), [(48, 20), (33, 300), (64, 512)])
@torch.no_grad()
def test_mlp(library: Library, hidden: int, inner: int) -> None:
    mlp = randomised(DeepseekV3MLP(DeepseekV3Config(hidden_size=hidden, intermediate_size=inner)))
    ours = through(library, mlp)
    assert isinstance(ours, NativeMLP)
    for shape in ((0,), (1,), (2, 3), (130,)):
        x = seeded(*shape, hidden, seed=7)
        torch.testing.assert_close(ours(x), mlp(x), atol=1e-4, rtol=1e-4)


ROUTINGS: dict[str, tuple[type[nn.Module], PretrainedConfig]] = {
    "v3": (DeepseekV3MoE, DeepseekV3Config(n_group=1, topk_group=1, norm_topk_prob=True)),
    "v3 groups": (DeepseekV3MoE, DeepseekV3Config(n_group=4, topk_group=2, norm_topk_prob=True)),
    "v3 shares as they are": (DeepseekV3MoE, DeepseekV3Config(n_group=2, topk_group=1, norm_topk_prob=False)),
    "v2 greedy": (DeepseekV2Moe, DeepseekV2Config(topk_method="greedy")),
    "v2 groups": (DeepseekV2Moe, DeepseekV2Config(topk_method="group_limited_greedy", n_group=4, topk_group=2)),
}


@each_build
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("short", [False, True], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_experts(library: Library, routing: str, short: bool) -> None:
    kind, config = ROUTINGS[routing]
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "moe_intermediate_size": 20,
        "n_routed_experts": 8,
        "num_local_experts": 8,
    }
    config = type(config).from_dict({**config.to_dict(), **sizes, "num_experts_per_tok": 3, "n_shared_experts": 2})
    config._experts_implementation = "eager"
    torch.manual_seed(3)
    moe: Any = randomised(kind(config))
    moe.gate.weight[5] = 0
    if hasattr(moe.gate, "e_score_correction_bias"):
        moe.gate.e_score_correction_bias[5] = -10.0  # nobody's, where biases count
    if short:
        for parameter in moe.experts.parameters():
            parameter.copy_(parameter.bfloat16())
    ours = through(library, moe)
    assert isinstance(ours, NativeMoE)
    for tokens in (0, 1, 2, 5, 40, 130):
        x = seeded(1, tokens, 48, seed=tokens)
        torch.testing.assert_close(ours(x), moe(x), atol=2e-4, rtol=1e-4)


def variant(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    return type(config).from_dict({**config.to_dict(), **changes})


PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES = {  # the odd ones have sizes that fill no register, and one key head for many
    "llama": LLAMA,
    "llama odd": variant(LLAMA, hidden_size=60, num_attention_heads=5, num_key_value_heads=1, head_dim=34),
    "qwen3": QWEN3,
    "qwen3 odd": variant(QWEN3, num_attention_heads=6, num_key_value_heads=1, head_dim=18),
    "qwen3 sliding": QWEN3_SLIDING,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3 plain": variant(DEEPSEEK_V3, q_lora_rank=None, rope_interleave=False, rope_parameters=PLAIN_ROPE),
    "deepseek_v3 wide": variant(
        DEEPSEEK_V3,
        num_attention_heads=3,
        kv_lora_rank=520,
        qk_nope_head_dim=33,
        qk_rope_head_dim=64,
        head_dim=64,
        v_head_dim=40,
    ),
}


@dataclass(frozen=True)
class Asked:
    """A request's part in a step: `tokens` from `start` on, as a block or not, seeing nothing before `context`."""

    start: int
    tokens: int
    as_block: bool
    context: int


@st.composite
def steps(draw: st.DrawFn) -> list[Asked]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, 150))
        tokens = draw(st.one_of(st.integers(1, 9), st.integers(1, 40)))
        found.append(Asked(start, tokens, draw(st.booleans()), draw(st.sampled_from([0, 0, start // 2, start]))))
    return found


class Model:
    """A random model over pages whose every byte is random too, by torch or by a build."""

    def __init__(self, config: PretrainedConfig, library: Library | None) -> None:
        torch.manual_seed(5)
        module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        self.module: Any = randomised(module).eval().requires_grad_(False)
        self.entries = attach(self.module)
        with chosen(library):
            self.name = use_kernels(self.module)
        self.layout = CacheLayout.of(self.entries, 16)
        self.store = PageStore(self.layout, dict.fromkeys(self.layout.groups, 60), CPU)

    def step(self, asked: Sequence[Asked], seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits and hidden states of all tokens of one step, and the bytes of all pages after it."""
        for records in self.store.records.values():
            records.copy_(seeded(records.shape[0], records.shape[1] // 4, seed=seed).view(torch.uint8))
        pages = Pages(self.layout, self.store)
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for i, one in enumerate(asked):
            tables: Tables = pages.open(f"request {i}")
            assert pages.extend(tables, one.start + one.tokens)
            pages.trim(tables, one.start)
            tokens = torch.randint(0, 256, (one.tokens,), generator=generator).tolist()
            rows.append(Row(tokens, one.start, tables, one.tokens, one.as_block, one.context))
        last = self.module.config.num_hidden_layers - 1
        output = TorchBackend(self.module, self.store, (last,)).forward(Batch.of(rows, self.layout, CPU))
        written = [records[1:].view(torch.float32).clone() for records in self.store.records.values()]
        return output.logits, output.taps[last], written


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Model:
    return Model(FAMILIES[request.param], None)


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.name)
def ours(request: pytest.FixtureRequest, reference: Model) -> Model:
    return Model(reference.module.config, request.param)


@settings(max_examples=25)
@given(asked=steps(), seed=st.integers(0, 99))
def test_models(reference: Model, ours: Model, asked: list[Asked], seed: int) -> None:
    """Over pages taken in any order; rows that begin and end anywhere, blocks, windows, few tokens and many."""
    assert reference.name in ("torch", "oneDNN") and ours.name.startswith("native")
    assert all(isinstance(layer.forward, NativeLayer) for layer in ours.module.model.layers)

    for found, expected in zip(ours.step(asked, seed), reference.step(asked, seed), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_hostile_pages_and_slots_are_refused_before_a_kernel_follows_them() -> None:
    entry = Entry(layer=0, name="k", shape=(8,), dtype=torch.float32, window=None)
    layout = CacheLayout.of([entry], 16)
    pages = Pages(layout, PageStore(layout, dict.fromkeys(layout.groups, 4), CPU))
    tables = pages.open("a")
    assert pages.extend(tables, 20)
    batch = Batch.of([Row([1], 19, tables, 0)], layout, CPU)
    (segment,), slots = batch.segments, batch.slots[entry.group]
    keys = segment.keys[entry.group]
    GroupPointers(batch, entry.group, 5)

    def refused(**changes: Any) -> None:
        with pytest.raises(AssertionError):
            GroupPointers(replace(batch, **changes), entry.group, 5)

    def elsewhere(tensor: Tensor, number: int) -> Tensor:
        return torch.full_like(tensor, number)

    for name, number in (("pages_RP", 5), ("pages_RP", -1), ("last_RQ", 32), ("first_RQ", -1), ("first_page_R", 1)):
        bad_keys = replace(keys, **{name: elsewhere(getattr(keys, name), number)})
        refused(segments=(replace(segment, keys={entry.group: bad_keys}),))
    for name, number in (("page_T", 5), ("page_T", -1), ("offset_T", 16), ("offset_T", -1)):
        refused(slots={entry.group: replace(slots, **{name: elsewhere(getattr(slots, name), number)})})
