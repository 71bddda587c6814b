"""Random drafters in the published format, and one that knows the answer."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from engine.batch import Batch
from engine.config import Config
from engine.drafters import Anchor, DraftBlock, Drafter, HiddenStates
from engine.drafters.config import DrafterConfig
from engine.drafters.dspark import DSparkModel
from engine.models import LoadedModel
from engine.pages import Pages
from local import Builder

BLOCK = 5
ARCHITECTURES = {"qwen3": "Qwen3DSparkModel", "deepseek_v3": "DeepseekV3DSparkModel"}


def drafter_config(target: Path, **changes: object) -> dict[str, object]:
    """A copy of the target's config.json and the drafter's own keys."""
    raw = json.loads((target / "config.json").read_text())
    layers = raw["num_hidden_layers"]
    own = {
        "architectures": [ARCHITECTURES[raw["model_type"]]],
        "num_target_layers": layers,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "first_k_dense_replace": 2,
        "block_size": BLOCK,
        "mask_token_id": 7,
        "target_layer_ids": [0, layers - 2],
        "num_anchors": 512,
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
        "markov_rank": 12,
        "markov_head_type": "vanilla",
        "tie_word_embeddings": False,
    }
    return {**raw, **own, **changes}


def save_random_drafter(target: Path, path: Path, seed: int = 0, **changes: object) -> Path:
    """Write config.json and model.safetensors, every parameter random, without copies of embedding and head."""
    raw = drafter_config(target, **changes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    config, _ = DrafterConfig.load(path)
    torch.manual_seed(seed)
    model = DSparkModel(
        config, AutoConfig.for_model(config.model_type, **{k: raw[k] for k in raw if k != "model_type"})
    )
    for tensor in model.parameters():
        tensor.data = torch.randn_like(tensor) * (1.0 if tensor.ndim == 1 else 1.5 * tensor.shape[-1] ** -0.5)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.safetensors")
    return path


class OracleDrafter:
    """Drafts each request's true continuation, with an error planted after every so many tokens.

    `answers` are whole token sequences, found by what they begin with. A draft it is not sure of has confidence 0.5.
    """

    tap_layers: tuple[int, ...] = ()
    keeps_hidden = False

    def __init__(self, answers: Sequence[Sequence[int]], block_length: int, error_every: int, vocab: int) -> None:
        self.block_length = block_length
        self._answers = [tuple(answer) for answer in answers]
        self._error_every = error_every
        self._vocab = vocab

    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: HiddenStates, last_R: Tensor) -> HiddenStates:
        return before

    def propose(self, anchors: Sequence[Anchor], max_drafts: int) -> DraftBlock:
        blocks = [self._draft(anchor)[:max_drafts] for anchor in anchors]
        token_RK = torch.tensor(blocks)
        sure = torch.full(token_RK.shape, 0.9)
        return DraftBlock(token_RK, confidence_RK=sure)

    def _draft(self, anchor: Anchor) -> list[int]:
        answer = next((a for a in self._answers if self._is_at(a, anchor)), ())
        after = [*answer[anchor.position + 1 :], *[0] * self.block_length][: self.block_length]
        wrong = (anchor.position + 1 + i for i in range(self.block_length))
        return [
            (t + 1) % self._vocab if place % self._error_every == 0 else t
            for t, place in zip(after, wrong, strict=True)
        ]

    def _is_at(self, answer: tuple[int, ...], anchor: Anchor) -> bool:
        return len(answer) > anchor.position and answer[anchor.position] == anchor.token


class KnowingBuilder(Builder):
    """Builds engines whose drafter knows the answers, but for an error in every so many tokens."""

    def __init__(
        self, config: Config, answers: list[list[int]], error_every: int, model: LoadedModel | None = None
    ) -> None:
        super().__init__(config, config.prefill, model)
        self._knows = OracleDrafter(answers, 5, error_every, self.facts.vocab_size)

    @property
    def block_length(self) -> int:
        return self._knows.block_length

    def _drafter(self, pages: Pages) -> Drafter:
        return self._knows
