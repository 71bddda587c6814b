"""Every build of kernels.cpp that this processor runs, against torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts, DeepseekV3RMSNorm

from engine.attention.paged import attend
from engine.batch import Batch, Row
from engine.kernels import native
from engine.kernels.attention import attend_in_place
from engine.kernels.experts import NativeExperts
from engine.kernels.linear import NativeLinear
from engine.kernels.native import Library, lossless, packed, unpacked
from engine.kernels.norm import NativeRMSNorm
from engine.pages import CacheLayout, Entry, Pages, PageStore

CPU = torch.device("cpu")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


LIBRARIES = list(native.builds(Path(os.environ.get("SANITIZED_KERNELS", native.FOLDER))))
each_build = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)


def test_what_can_run_here_was_built() -> None:
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


@given(st.integers(1, 70), st.integers(1, 40), st.sampled_from([16, 32]), st.booleans())
def test_panels_hold_the_matrix(num_out: int, num_in: int, panel: int, short: bool) -> None:
    weight = seeded(num_out, num_in).bfloat16().float()
    panels = packed(weight, panel, torch.bfloat16 if short else torch.float32)
    assert torch.equal(unpacked(panels, num_out), weight)


@each_build
@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 256, 500])
def test_norm(library: Library, size: int) -> None:
    norm = DeepseekV3RMSNorm(size, eps=1e-5)
    norm.weight.data.copy_(seeded(size))
    for shape in ((0,), (1,), (3, 5), (300,)):
        x = 10 * seeded(*shape, 2 * size, seed=2)[..., ::2]
        torch.testing.assert_close(NativeRMSNorm(norm, library)(x), norm(x), **CLOSE)


@each_build
@pytest.mark.parametrize("short", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 40, 130])
def test_experts(library: Library, short: bool, tokens: int) -> None:
    config = DeepseekV3Config(hidden_size=48, moe_intermediate_size=20, n_routed_experts=6, num_experts_per_tok=3)
    config._experts_implementation = "eager"
    experts = DeepseekV3Experts(config)
    for i, parameter in enumerate(experts.parameters()):
        parameter.data.copy_(seeded(*parameter.shape, seed=i).bfloat16() if short else seeded(*parameter.shape, seed=i))
    x, share = seeded(tokens, 48, seed=7), seeded(tokens, 3, seed=8).softmax(-1)
    chosen = (
        torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(t))[:3] for t in range(tokens)])
        if tokens
        else torch.empty(0, 3, dtype=torch.int64)
    )  # expert 5 is nobody's
    ours = NativeExperts(experts, library)
    assert ours.up.dtype == (torch.bfloat16 if short else torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, chosen, share), experts(x, chosen, share), atol=1e-3, rtol=1e-4)


SHAPES = [(4, 2, 20, 20), (6, 1, 24, 16), (3, 3, 64, 64), (5, 1, 33, 17)]
Asked = list[tuple[int, int, bool, int]]


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """(where it stands, its tokens in this step, whether as a block, where its context begins) of each request."""
    count = draw(st.integers(1, 4))
    found = []
    for _ in range(count):
        start, tokens = draw(st.integers(0, 150)), draw(st.integers(1, 9))
        context = draw(st.sampled_from([0, 0, start // 2, start]))
        found.append((start, tokens, draw(st.booleans()), context))
    return found


@each_build
@pytest.mark.parametrize(
    ("heads", "groups", "size", "value"), [(4, 2, 20, 20), (6, 1, 24, 16), (3, 3, 64, 64), (5, 1, 33, 17)]
)
@pytest.mark.parametrize("window", [None, 20])
@given(asked=requests(), seed=st.integers(0, 99))
def test_attention(
    library: Library,
    heads: int,
    groups: int,
    size: int,
    value: int,
    window: int | None,
    asked: list[tuple[int, int, bool, int]],
    seed: int,
) -> None:
    """Over pages taken in any order, blocks and windows, rows that begin and end anywhere, tokens padded or not."""
    latent = groups == 1
    shape = (size,) if latent else (groups, size)
    entry = Entry(layer=0, name="k", shape=shape, dtype=torch.float32, window=window)
    other = Entry(layer=0, name="v", shape=shape, dtype=torch.float32, window=window)
    layout = CacheLayout.of([entry] if latent else [entry, other], 16)
    pages = Pages(layout, PageStore(layout, dict.fromkeys(layout.groups, 60), CPU))
    for records in pages.store.records.values():
        records.copy_(seeded(records.shape[0], records.shape[1] // 4, seed=seed).view(torch.uint8))
    rows = []
    for i, (start, tokens, as_block, context) in enumerate(asked):
        tables = pages.open(f"request {i}")
        assert pages.extend(tables, start + tokens)
        if window is not None:
            pages.trim(tables, start)
        rows.append(Row([1] * tokens, start, tables, 0, as_block, context))
    batch = Batch.of(rows, layout, CPU)
    q_THD = seeded(batch.num_tokens, heads, size, seed=seed + 1)
    key = pages.store.slab(entry.key)
    values = key if latent else pages.store.slab(other.key)
    for segment in batch.segments:
        keys = segment.keys[entry.group]
        k, v = key.gather(keys.pages_RP), values.gather(keys.pages_RP)
        if latent:
            k, v = k[:, :, None], v[:, :, None, :value]
        expected = segment.unpad(attend(segment.pad(q_THD[segment.tokens]), k, v, keys.mask_R1QK, 0.2))

        found = attend_in_place(q_THD[segment.tokens], key, values, value, keys, 0.2, library)

        torch.testing.assert_close(found, expected, **CLOSE)


def test_hostile_pages_are_refused_before_a_kernel_follows_them() -> None:
    entry = Entry(layer=0, name="k", shape=(8,), dtype=torch.float32, window=None)
    layout = CacheLayout.of([entry], 16)
    pages = Pages(layout, PageStore(layout, dict.fromkeys(layout.groups, 4), CPU))
    tables = pages.open("a")
    assert pages.extend(tables, 20)

    def keys():  # type: ignore[no-untyped-def]
        return Batch.of([Row([1], 19, tables, 0)], layout, CPU).segments[0].keys[entry.group]

    keys().check(5)
    for field, value in (("pages_RP", 5), ("pages_RP", -1), ("last_RQ", 32), ("first_RQ", -1)):
        bad = keys()
        getattr(bad, field).fill_(value) if field != "first_RQ" else object.__setattr__(bad, field, bad.first_RQ - 1)
        with pytest.raises(AssertionError):
            bad.check(5)
