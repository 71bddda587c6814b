"""The training forward says what the engine's drafter says, for the same weights, prompt and drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

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
from train.drafting import Drafted, FrozenTarget, block_mask, draft, new_drafter

CPU = torch.device("cpu")
PROMPTS = (1, 9, 40)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class Engine:
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


def training_forward(drafter: Path, frozen: FrozenTarget, tokens_T: Tensor, anchors: list[int]) -> Drafted:
    config, raw = DrafterConfig.load(drafter)
    model = new_drafter(raw, config, std=0.02)
    model.load_state_dict(load_file(drafter / "model.safetensors"))
    taps, _ = frozen(tokens_T[None])
    return draft(model, frozen, taps, tokens_T[None], torch.tensor([anchors]))


@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn", "none"])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
@torch.no_grad()
def test_training_forward_equals_the_engine(
    family: str, head: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    target: Path = request.getfixturevalue(family)
    changes = {"markov_head_type": head} if head != "none" else {"markov_rank": 0, "confidence_head_with_markov": False}
    drafter = save_random_drafter(target, tmp_path, **changes)
    frozen = FrozenTarget.load(target, tuple(json.loads((tmp_path / "config.json").read_text())["target_layer_ids"]))
    prompts = [torch.arange(length + 1) * 37 % 256 for length in PROMPTS]
    engine = Engine(target, drafter, prompts)

    block = engine.dspark.propose(engine.anchors, engine.dspark.block_length)
    hidden_RKD = engine.dspark._block(engine.anchors)

    for r, prompt_T in enumerate(prompts):
        tokens_T = torch.cat([prompt_T, block.token_RK[r]])
        drafted = training_forward(drafter, frozen, tokens_T, [len(prompt_T) - 1])
        assert block.log_probs_RKV is not None
        assert block.confidence_RK is not None
        assert drafted.confidence_BNK is not None
        torch.testing.assert_close(drafted.hidden_BNKD[0, 0], hidden_RKD[r], **CLOSE)
        torch.testing.assert_close(drafted.logits_BNKV[0, 0].log_softmax(-1), block.log_probs_RKV[r], **CLOSE)
        torch.testing.assert_close(drafted.confidence_BNK[0, 0].sigmoid(), block.confidence_RK[r], **CLOSE)


@torch.no_grad()
def test_blocks_of_one_sequence_do_not_see_each_other(deepseek_v3: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(deepseek_v3, tmp_path)
    frozen = FrozenTarget.load(deepseek_v3, (0, 1))
    tokens_T = torch.arange(60) * 31 % 256

    together = training_forward(drafter, frozen, tokens_T, [5, 6, 40])

    for n, anchor in enumerate([5, 6, 40]):
        alone = training_forward(drafter, frozen, tokens_T[: anchor + BLOCK + 1], [anchor])
        torch.testing.assert_close(together.logits_BNKV[:, n], alone.logits_BNKV[:, 0], **CLOSE)


def test_mask_shows_the_context_before_the_anchor_and_the_own_block() -> None:
    mask_ST = block_mask(torch.tensor([[1, 3]]), block_size=2, num_context=4)[0, 0].int().tolist()

    assert mask_ST == [
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1],
    ]
