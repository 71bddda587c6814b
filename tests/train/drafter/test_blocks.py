"""The training forward says what the engine's drafter says, for the same weights, prompt and drafts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.drafters import Anchor
from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSpark
from engine.drafters.load import load_dspark
from engine.models import load_model
from engine.pages import CacheLayout, Pages, PageStore
from engine.types import Sampling
from tests.drafters import BLOCK, save_random_drafter
from train.drafter.blocks import Blocks, DraftOutput, block_mask, draft, draft_logits, new_drafter, packed_blocks, packs
from train.drafter.target import FrozenTarget

CPU = torch.device("cpu")
PROMPTS = (1, 9, 40)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class ServingEngine:
    """The engine's target and drafter over pages that hold the context of each prompt."""

    def __init__(self, target: Path, drafter: Path, prompts: list[Tensor]) -> None:
        model = load_model(target, torch.float32, CPU)
        loaded = load_dspark(drafter, model)
        self.layout = CacheLayout.of([*model.entries, *loaded.entries], 16)
        self.pages = Pages(self.layout, PageStore(self.layout, dict.fromkeys(self.layout.groups, 50), CPU))
        self.dspark = DSpark(loaded, self.pages.store)
        self.backend = TorchBackend(model.module, self.pages.store, self.dspark.tap_layers)
        self.anchors = [self._anchor(prompt_T) for prompt_T in prompts]

    def _anchor(self, prompt_T: Tensor) -> Anchor:
        """Behind the target's step over all of the prompt but its last token."""
        tables = self.pages.open(f"prompt of {len(prompt_T)}")
        assert self.pages.extend(tables, len(prompt_T) + BLOCK)
        batch = Batch.of([Row(prompt_T[:-1].tolist(), 0, tables, 1)], self.layout, CPU)
        self.dspark.absorb(batch, self.backend.forward(batch).taps, [None], batch.logits_index)
        return Anchor(int(prompt_T[-1]), len(prompt_T) - 1, tables, Sampling(temperature=1.0, seed=len(prompt_T)))


@dataclass(frozen=True)
class Said:
    """What the training forward says of the blocks of one sequence, [N, K, ...]."""

    hidden: Tensor
    logits: Tensor
    confidence: Tensor


def training_forward(drafter: Path, target: FrozenTarget, tokens_T: Tensor, anchors: list[int]) -> Said:
    config, raw = DrafterConfig.load(drafter)
    model = new_drafter(raw, config, std=0.02)
    model.load_state_dict(load_file(drafter / "model.safetensors"))
    blocks = Blocks(tokens_T[None], torch.tensor([anchors]), config.block_size)
    drafted: DraftOutput = draft(model, target, target.states([tokens_T.tolist()])[0][None], blocks)
    assert drafted.confidence_R is not None
    found = (drafted.hidden_RD, draft_logits(model, target, drafted), drafted.confidence_R)
    return Said(*(values.unflatten(0, (-1, config.block_size)) for values in found))


@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn", "none"])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
@torch.no_grad()
def test_training_forward_equals_the_engine(
    family: str, head: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    target: Path = request.getfixturevalue(family)
    changes = {"markov_head_type": head} if head != "none" else {"markov_rank": 0, "confidence_head_with_markov": False}
    drafter = save_random_drafter(target, tmp_path, **changes)
    taps = json.loads((tmp_path / "config.json").read_text())["target_layer_ids"]
    frozen = FrozenTarget.load(target, taps, torch.float32, CPU)
    prompts = [torch.arange(length + 1) * 37 % 256 for length in PROMPTS]
    engine = ServingEngine(target, drafter, prompts)

    block = engine.dspark.propose(engine.anchors, engine.dspark.block_length)
    hidden_RKD = engine.dspark._block(engine.anchors)

    for r, prompt_T in enumerate(prompts):
        tokens_T = torch.cat([prompt_T, block.token_RK[r]])
        drafted = training_forward(drafter, frozen, tokens_T, [len(prompt_T) - 1])
        assert block.log_probs_RKV is not None
        assert block.confidence_RK is not None
        torch.testing.assert_close(drafted.hidden[0], hidden_RKD[r], **CLOSE)
        torch.testing.assert_close(drafted.logits[0].log_softmax(-1), block.log_probs_RKV[r], **CLOSE)
        torch.testing.assert_close(drafted.confidence[0].sigmoid(), block.confidence_RK[r], **CLOSE)


@torch.no_grad()
def test_blocks_of_one_sequence_do_not_see_each_other(deepseek_v3: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(deepseek_v3, tmp_path)
    frozen = FrozenTarget.load(deepseek_v3, (0, 1), torch.float32, CPU)
    tokens_T = torch.arange(60) * 31 % 256

    together = training_forward(drafter, frozen, tokens_T, [5, 6, 40])

    for n, anchor in enumerate([5, 6, 40]):
        alone = training_forward(drafter, frozen, tokens_T[: anchor + BLOCK + 1], [anchor])
        torch.testing.assert_close(together.logits[n], alone.logits[0], **CLOSE)


def test_mask_shows_the_context_before_the_anchor_and_the_own_block() -> None:
    mask_ST = block_mask(torch.tensor([[1, 3]]), block_size=2, num_context=4)[0, 0].int().tolist()

    assert mask_ST == [
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1],
    ]


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_packed_attention_equals_the_dense_mask(
    seed: int, rows: int, block: int, num_anchors: int, groups: int
) -> None:
    """Outputs and gradients, however anchors fall into packs, with fewer key heads than query heads, and values of
    another size than keys."""
    generator = torch.Generator().manual_seed(seed)
    context, heads = 30, 2
    picked = [torch.randperm(context - 1, generator=generator)[:num_anchors].sort().values + 1 for _ in range(rows)]
    anchor_BN = torch.stack(picked)
    shapes = [(rows, heads, num_anchors * block, 6)]
    shapes += [(rows, groups, context + num_anchors * block, size) for size in (6, 4)]
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)

    packed, _ = packed_blocks(nn.Module(), query, key, value, None, 0.3, packs(anchor_BN, block, at_once=4))
    repeated = [x.repeat_interleave(heads // groups, dim=1) for x in (key, value)]
    score = (query @ repeated[0].mT * 0.3).masked_fill(~block_mask(anchor_BN, block, context), -torch.inf)
    dense = (score.softmax(-1) @ repeated[1]).transpose(1, 2)

    torch.testing.assert_close(packed, dense, atol=1e-5, rtol=1e-4)
    weight = torch.randn(dense.shape, generator=generator)
    for name, of in (("packed", packed), ("dense", dense)):
        assert of.shape == weight.shape, name
    gradients = [torch.autograd.grad((of * weight).sum(), (query, key, value)) for of in (packed, dense)]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-3)


def test_no_mask_is_as_large_as_the_whole() -> None:
    anchor_BN = torch.arange(1, 513)[None] * 4
    for pack in packs(anchor_BN, 7):
        assert pack.mask_B1SJ.shape[2] == 8 * 7
        assert pack.mask_B1SJ.shape[3] == pack.reach + 8 * 7
