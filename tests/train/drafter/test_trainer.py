"""The drafter's training: it learns from the right places, and many workers do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from engine.drafters.load import load_dspark
from engine.models import load_model
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING, save_random
from train.drafter.blocks import Blocks, draft, draft_logits
from train.drafter.config import DrafterSection, TrainingSection
from train.drafter.features import OnlineFeatures
from train.drafter.sequences import Sequences
from train.drafter.shape import FORMS, drafter_config, export_drafter
from train.drafter.target import FrozenTarget
from train.drafter.trainer import DrafterTrainer, sample_step
from train.drafter.workers import Workers

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
SHAPE = DrafterSection(num_layers=1, target_layer_ids=(0, 1), block_size=4, mask_token_id=7, markov_rank=8)
SECTION = TrainingSection(
    steps=6, sequences=4, anchors=8, warm_up=0.0, dtype="float32", seed=3, rate=0.02, markov_rate=0.01, vector_rate=0.01
)


def random_text(count: int = 16, length: int = 40) -> Sequences:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 20, count)
    end = generator.integers(25, length + 1, count)
    return Sequences(generator.integers(0, 256, (count, length)).astype(np.uint32), first, end)


def trainer(target: Path, section: TrainingSection = SECTION, workers: Workers | None = None) -> DrafterTrainer:
    raw = drafter_config(target, SHAPE, section.anchors)
    loaded, text = FrozenTarget.load(target, SHAPE.target_layer_ids, torch.float32, CPU), random_text()
    return DrafterTrainer(section, raw, loaded, text, OnlineFeatures(loaded, text), workers or Workers())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
def test_loss_falls(family: str, optimizer: str, request: pytest.FixtureRequest) -> None:
    section = SECTION.model_copy(update={"steps": 30, "optimizer": optimizer, "dtype": "bfloat16"})
    one = trainer(request.getfixturevalue(family), section)
    before = {name: parameter.clone() for name, parameter in one.model.named_parameters()}

    found = list(one.train())

    first, last = ({k: np.mean([f[k] for f in part]) for k in found[0]} for part in (found[:5], found[-5:]))
    for name in ("loss", "cross_entropy", "l1"):
        assert last[name] < first[name], name
    assert last["acceptance"] > first["acceptance"]
    for name, parameter in one.model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} learns nothing"


def test_target_stays_as_it_is(deepseek_v3: Path) -> None:
    one = trainer(deepseek_v3)
    before = {name: tensor.clone() for name, tensor in one.target.model.module.state_dict().items()}
    one.step()
    for name, tensor in one.target.model.module.state_dict().items():
        assert torch.equal(tensor.to_dense(), before[name].to_dense()), name


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
def test_engine_loads_what_is_written(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    target: Path = request.getfixturevalue(family)
    one = trainer(target)
    one.step()
    raw = drafter_config(target, SHAPE, 8)
    export_drafter(one.model, raw, tmp_path / "lean")
    export_drafter(one.model, raw, tmp_path / "whole", copies_of=one.target)

    model = load_model(target, torch.bfloat16, CPU)
    lean, whole = (load_dspark(tmp_path / name, model) for name in ("lean", "whole"))

    assert (tmp_path / "whole/model.safetensors").stat().st_size > (tmp_path / "lean/model.safetensors").stat().st_size
    for loaded in (lean, whole):
        assert loaded.model.config.block_size == SHAPE.block_size
        for name, tensor in loaded.model.named_parameters():
            torch.testing.assert_close(tensor, one.model.get_parameter(name).to(torch.bfloat16), msg=name)


@pytest.mark.parametrize("form", [None, "gqa"])
@pytest.mark.parametrize("family", [DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING], ids=lambda c: c.model_type)
def test_any_target_of_the_engine_gets_a_drafter(family: PretrainedConfig, form: Any, tmp_path: Path) -> None:
    """Of its own kind, or with grouped-query attention: the engine loads it and says what it learnt."""
    target = save_random(family, tmp_path / "target")
    shape = SHAPE.model_copy(update={"form": form, "backbone": {"head_dim": 16} if form else {}})
    raw = drafter_config(target, shape, SECTION.anchors)
    loaded, text = FrozenTarget.load(target, SHAPE.target_layer_ids, torch.float32, CPU), random_text()
    one = DrafterTrainer(SECTION, raw, loaded, text, OnlineFeatures(loaded, text), Workers())
    first, *_ = [figures["loss"] for figures in one.train()]
    export_drafter(one.model, raw, tmp_path / "drafter")

    found = load_dspark(tmp_path / "drafter", load_model(target, torch.float32, CPU))

    assert np.isfinite(first)
    kind = "mla" if form is None and "deepseek" in family.model_type else "gqa"
    assert raw["architectures"] == [FORMS[kind][0]]
    assert found.block_length == SHAPE.block_size


@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 20), st.integers(2, 30)), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_anchors_and_weights(seed: int, anchors: int, block: int, rows: list[tuple[int, int]]) -> None:
    """Anchors ascend where the target speaks and have a token behind them; weights decay, end with the text, and add
    up to 1; nothing is counted twice."""
    first, end = np.array([f for f, _ in rows]), np.array([f + size for f, size in rows])
    text = Sequences(np.zeros((len(rows), 60), np.uint32), first, end)
    if (end - np.maximum(first, 1) < 2).all():
        return
    section = TrainingSection(steps=1, sequences=5, anchors=anchors, seed=seed)

    picked = sample_step(text, section, block, step=0)

    assert float(picked.weight_BNK.sum()) == pytest.approx(1.0, rel=1e-5) or not picked.weight_BNK.any()
    for b, number in enumerate(picked.numbers):
        row, counted = picked.anchor_BN[b].tolist(), picked.weight_BNK[b, :, 0] > 0
        assert row == sorted(row)
        places = [anchor for anchor, counts in zip(row, counted.tolist(), strict=True) if counts]
        assert len(places) == len(set(places)) == min(anchors, max(0, end[number] - 1 - max(1, first[number])))
        for n, anchor in enumerate(places):
            assert max(1, first[number]) <= anchor < end[number] - 1
            own = picked.weight_BNK[b, n]
            inside = max(0, min(block, end[number] - 1 - anchor))
            assert own[inside:].eq(0).all()
            decay = own[:inside] / own[0]
            torch.testing.assert_close(decay, torch.exp(-torch.arange(inside) / 4.0), atol=1e-6, rtol=1e-4)


def test_what_a_step_learns_from_depends_on_seed_and_step_alone() -> None:
    text = random_text()
    one, again, later = (sample_step(text, SECTION, 4, step) for step in (5, 5, 6))
    assert one.numbers == again.numbers
    assert torch.equal(one.anchor_BN, again.anchor_BN)
    assert one.numbers != later.numbers or not torch.equal(one.anchor_BN, later.anchor_BN)


def test_rate_rises_and_falls_as_a_cosine() -> None:
    section = TrainingSection(steps=1000, warm_up=0.1, final_rate=0.1)
    assert section.rate_at(0) == pytest.approx(0.01, rel=1e-3)
    assert section.rate_at(99) == pytest.approx(1.0, abs=0.03)
    assert section.rate_at(500) == pytest.approx(0.55)
    assert section.rate_at(999) == pytest.approx(0.1, abs=1e-4)


@torch.no_grad()
def test_drafts_are_compared_with_the_tokens_and_distributions_of_their_places(deepseek_v3: Path) -> None:
    """Draft k (from 0) is for the token at anchor + k + 1, which the target foretells at anchor + k."""
    one = trainer(deepseek_v3)
    picked = sample_step(one.text, SECTION, SHAPE.block_size, step=2)
    cross_entropy = l1 = 0.0
    for b, number in enumerate(picked.numbers):
        tokens = one.text.tokens(number)
        state_TF = one.target.states([tokens])[0]
        p_TV = (state_TF[:, -one.target.hidden_size :] @ one.target.head_VD.T).softmax(-1)
        for n, anchor in enumerate(picked.anchor_BN[b].tolist()):
            blocks = Blocks(torch.tensor([tokens]), torch.tensor([[anchor]]), SHAPE.block_size)
            drafted = draft(one.model, one.target, state_TF[None], blocks)
            log_q_KV = draft_logits(one.model, one.target, drafted).log_softmax(-1)
            for k in range(SHAPE.block_size):
                weight = float(picked.weight_BNK[b, n, k])
                if weight:
                    cross_entropy -= weight * float(log_q_KV[k, tokens[anchor + k + 1]])
                    l1 += weight * float((log_q_KV[k].exp() - p_TV[anchor + k]).abs().sum())

    with torch.enable_grad():
        figures = one.learn(picked)

    assert figures["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-4)
    assert figures["l1"] == pytest.approx(l1, rel=1e-4)
    assert figures["acceptance"] == pytest.approx(1 - l1 / 2, rel=1e-4)


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train.drafter.test_trainer import SECTION, trainer
from train.drafter.workers import joined
with joined("cpu") as (workers, device):
    for sequences in map(int, sys.argv[3:]):
        one = trainer(Path(sys.argv[1]), SECTION.model_copy(update={"sequences": sequences}), workers)
        losses = [figures["loss"] for figures in one.train()]
        if workers.is_first:
            torch.save({"losses": losses, "model": one.model.state_dict()}, f"{sys.argv[2]}/{sequences}.pt")
"""


@pytest.fixture(scope="module")
def two_workers(deepseek_v3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers learn with 4 sequences in a step, and with one."""
    folder = tmp_path_factory.mktemp("two_workers")
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += ["--master-port=29531", str(script), str(deepseek_v3), str(folder), "4", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("sequences", [4, 1])
def test_two_workers_lose_what_one_loses(deepseek_v3: Path, two_workers: Path, sequences: int) -> None:
    """Losses to 1e-5 and weights to 1e-4: sums over sequences have another order. With one sequence in a step, the
    second worker has nothing to do but keep up."""
    alone = trainer(deepseek_v3, SECTION.model_copy(update={"sequences": sequences}))
    expected = [figures["loss"] for figures in alone.train()]

    found = torch.load(two_workers / f"{sequences}.pt", weights_only=True)

    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(found["model"][name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def environment() -> dict[str, str]:
    """Of a process that trains."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
