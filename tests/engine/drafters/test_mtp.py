"""Drafts of the checkpoint's MTP layer against transformers' own, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.batch import Batch, Row
from engine.drafters import Anchor
from engine.drafters.load import load_drafter
from engine.errors import CheckpointRefused
from engine.models import LoadedModel, load_model
from engine.types import Sampling
from tests.engine.drafters.reference import MTPReference
from tests.engine.drafters.rig import CPU, PAGE, Bench, some_tokens

DRAFTS = 3


@pytest.fixture(scope="module")
def target(deepseek_v3: Path, computed_by: str) -> tuple[Path, LoadedModel]:
    return deepseek_v3, load_model(deepseek_v3, torch.float32, CPU)


def test_drafts_are_those_of_transformers(target: tuple[Path, LoadedModel]) -> None:
    """Several requests at once, contexts of any length in any chunks."""
    path, model = target
    bench = Bench(model, load_drafter("mtp", model, DRAFTS))
    prompts = [some_tokens(1, 2), some_tokens(2, 3), some_tokens(3, PAGE + 1), some_tokens(4, 75)]
    chunks: list[list[int]] = [[], [1], [5, 7], [40, 1, 1, 20]]
    anchors = [bench.seen(f"r{i}", p, c) for i, (p, c) in enumerate(zip(prompts, chunks, strict=True))]

    block = bench.drafter.propose(anchors, DRAFTS)

    reference = MTPReference(path)
    for r, prompt in enumerate(prompts):
        drafts, confidences = reference.draft(prompt, DRAFTS)
        assert block.token_RK[r].tolist() == drafts
        assert block.confidence_RK is not None
        assert torch.allclose(block.confidence_RK[r], torch.tensor(confidences), atol=1e-5)


def test_rejected_drafts_leave_no_context(target: tuple[Path, LoadedModel]) -> None:
    """Entries made from drafts are overwritten with the target's own states, however many of them were accepted."""
    _, model = target
    bench = Bench(model, load_drafter("mtp", model, DRAFTS))
    tokens = some_tokens(5, 40)
    once = bench.seen("once", tokens, [])
    twice = bench.seen("twice", tokens[:30], [])
    bench.drafter.propose([twice], DRAFTS)
    for start, end in ((29, 33), (33, 34), (34, 39)):
        batch = Batch.of([Row([*tokens[start:end], 7, 7], start, twice.tables, 3)], bench.layout, CPU)
        output = bench.backend.forward(batch)
        rows = bench.drafter.absorb(batch, output.taps, [twice.hidden], batch.logits_index[:1])
        twice = Anchor(tokens[end], end, twice.tables, Sampling(), hidden=rows[0])
        bench.drafter.propose([twice], DRAFTS)

    alone, after = (
        bench.drafter.propose([once], DRAFTS),
        bench.drafter.propose([twice], DRAFTS),
    )

    assert torch.equal(alone.token_RK, after.token_RK)
    assert torch.allclose(alone.confidence_RK, after.confidence_RK, atol=1e-5)


def test_an_existing_entry_is_not_overwritten_from_an_unknown_state(target: tuple[Path, LoadedModel]) -> None:
    """After a prefix hit the last token is computed again."""
    _, model = target
    bench = Bench(model, load_drafter("mtp", model, DRAFTS))
    tokens = some_tokens(6, 20)
    anchor = bench.seen("r", tokens, [])
    pages = anchor.tables.groups["full"].page_ids
    before = bench.pages.store.records["full"][pages].clone()

    batch = Batch.of([Row(tokens[18:19], 18, anchor.tables, 1)], bench.layout, CPU)
    (row,) = bench.absorb(batch, [None])

    target_bytes = bench.layout.groups["full"].target_bytes
    after = bench.pages.store.records["full"][pages]
    assert torch.equal(after[:, target_bytes:], before[:, target_bytes:])
    assert anchor.hidden is not None and row is not None
    assert torch.allclose(row, anchor.hidden, atol=1e-5)


def changed(path: Path, copy: Path, drop: str = "", **other: Tensor) -> LoadedModel:
    """The target of a copy of the checkpoint, without some tensors, with some others."""
    shutil.copytree(path, copy, dirs_exist_ok=True)
    stored = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not drop or drop not in name}
    save_file(kept | other, copy / "model.safetensors", metadata={"format": "pt"})
    return load_model(copy, torch.float32, CPU)


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (".layers.3.", r"no tensor model\.layers\.3\.\*"),
        (".layers.3.eh_proj", "lacks 1 tensors: eh_proj.weight"),
        (".layers.3.mlp.experts.5.up_proj", "lacks 1 tensors: mlp.experts.5.up_proj.weight"),
    ],
)
def test_an_incomplete_layer_is_refused(deepseek_v3: Path, tmp_path: Path, drop: str, reason: str) -> None:
    model = changed(deepseek_v3, tmp_path, drop)

    with pytest.raises(CheckpointRefused, match=reason):
        load_drafter("mtp", model)


def test_only_an_equal_copy_of_the_embedding_is_accepted(deepseek_v3: Path, tmp_path: Path) -> None:
    own = load_file(deepseek_v3 / "model.safetensors")["model.embed_tokens.weight"]
    name = "model.layers.3.embed_tokens.weight"

    load_drafter("mtp", changed(deepseek_v3, tmp_path / "same", **{name: own.clone()}))

    with pytest.raises(CheckpointRefused, match=f"{name} is not the target's own"):
        load_drafter("mtp", changed(deepseek_v3, tmp_path / "other", **{name: own + 1}))


def test_a_model_without_mtp_layers_is_refused(qwen3: Path) -> None:
    with pytest.raises(CheckpointRefused, match="Qwen3ForCausalLM has no MTP layer"):
        load_drafter("mtp", load_model(qwen3, torch.float32, CPU))
