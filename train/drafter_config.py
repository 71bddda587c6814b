"""What `sparkpool train` reads: one YAML file. Relative paths in it start at the file's own directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from engine.errors import ConfigError
from engine.section import Positive, Section

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class TargetSection(Section):
    """The model to draft for, as the engine runs it."""

    path: Path
    """Any checkpoint that the engine loads."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Its weights, arithmetic and cache: what it shall be served with."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class DrafterSection(Section):
    """The drafter's shape, in DeepSpec's own terms. What is not here follows from the target."""

    form: Literal["mla", "gqa"] | None = None
    """Attention: `gqa` writes Qwen3DSparkModel, as published; `mla` DeepseekV3DSparkModel, whose pages are as small as
    a DeepSeek target's. None: as the target's."""
    num_layers: Positive = 2
    """Layers of the backbone (published drafters: 5)."""
    target_layer_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    """Layers of the target, from 0, whose output is the drafter's context. The last one cannot be among them."""
    block_size: Annotated[int, Field(ge=1, le=64)] = 7
    """Drafts of a block."""
    mask_token_id: Annotated[int, Field(ge=0)]
    """A token that no text contains; it stands for each draft but the first on the way in."""
    markov_rank: Annotated[int, Field(ge=0)] = 256
    """Rank of the sequential head; 0 for none (DFlash)."""
    markov_head_type: Literal["vanilla", "gated", "rnn"] = "vanilla"
    """The kind of sequential head."""
    confidence_head: bool = True
    """Whether the drafter says how likely each draft is to survive."""
    backbone: dict[str, Any] = Field(default_factory=dict)
    """Keys of config.json that go over those taken from the target."""
    copies: bool = False
    """Write copies of the target's embedding and head into the drafter's file, as published ones have them."""


class TextSection(Section):
    """What the drafter learns from: prompts with what the target says after them."""

    prompts: Literal["corpus"] | Path = "corpus"
    """`corpus`: Python source of packages installed here. Or a JSON Lines file; a line has `prompt` (text),
    `messages` (for the chat template) or `prompt_token_ids`."""
    sequences: Positive = 2048
    """How many the target writes; a file's prompts are used again, in turn, with other seeds."""
    plain: Annotated[int, Field(ge=0)] = 0
    """How many more sequences are the corpus itself, as people wrote it."""
    tokens: Annotated[int, Field(ge=8)] = 2048
    """Of a sequence at most, prompt included. A prompt that leaves no room for a block is an error."""
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.8, 1.0, 1.0)
    """Of the target, in turn."""
    ignore_eos: bool = False
    """Go on behind the target's end token, up to `tokens`."""
    seed: int = 0
    """Of what the target says."""


class FeatureSection(Section):
    """The target's hidden states, which are the drafter's input."""

    cache: bool = True
    """Compute them once and keep them on disk; false: again in every step, which takes time instead of space."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of what is kept."""


class LossSection(Section):
    """Weights of the three losses, and of a block's places (DSpark paper; DeepSpec, loss.py)."""

    cross_entropy: Share = 0.1
    """Of the drafts, with `labels`."""
    labels: Literal["tokens", "distribution"] = "tokens"
    """The tokens that the sequence goes on with, as published; or what the target expects in their places, from which a
    small drafter learns faster."""
    l1: Share = 0.9
    """Between the distributions of draft and target: twice the total variation."""
    confidence: Share = 1.0
    """Binary cross-entropy with the analytic acceptance 1 - 0.5 L1."""
    position_decay: Rate = 4.0
    """Draft k counts exp(-(k - 1) / position_decay)."""


class TrainingSection(Section):
    """The loop. A step is `sequences` x `anchors` blocks, over all workers."""

    steps: Positive
    """Updates."""
    sequences: Positive = 12
    """Of a step."""
    anchors: Positive = 40
    """Blocks of a sequence, at most (published: 512)."""
    losses: LossSection = LossSection()
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: for the backbone's matrices; all else is AdamW's in any case."""
    rate: Rate = 6e-4
    """The backbone's highest learning rate; 0.02 is a good one for Muon."""
    markov_rate: Rate = 6e-4
    """That of the sequential head: a table of pairs of tokens, which are rare, and wants a high one."""
    vector_rate: Rate = 6e-4
    """That of norms and the confidence head."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """Share of the steps in which rates rise."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the highest rate that half a cosine falls to."""
    clip: Rate = 1.0
    """Largest norm of all gradients together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the drafter; its weights are float32 while it learns."""
    device: str = "cpu"
    """A torch device."""
    checkpoint_steps: Positive = 100
    """How often everything that a resumed run needs is written."""
    seed: int = 0
    """Of weights, text order and anchors."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def rate_at(self, step: int) -> float:
        """Factor on every learning rate in `step`, from 0: a straight rise, then half a cosine to `final_rate`."""
        rise = min(1.0, (step + 1) / max(1.0, self.warm_up * self.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rise * (self.final_rate + (1 - self.final_rate) * cosine)


class TrainConfig(Section):
    """The whole file."""

    target: TargetSection
    out: Path
    """The drafter's folder: config.json and model.safetensors."""
    work: Path
    """Text, features, checkpoint and metrics of this run: what an interrupted one goes on from."""
    shared: Path | None = None
    """Text and features in another folder, for several drafters of one target. None: in `work`."""
    drafter: DrafterSection
    text: TextSection = TextSection()
    features: FeatureSection = FeatureSection()
    training: TrainingSection

    @model_validator(mode="after")
    def _a_block_fits(self) -> Self:
        if self.text.tokens < self.drafter.block_size + 2:
            raise ValueError(f"text.tokens {self.text.tokens} are too few for a block of {self.drafter.block_size}")
        return self

    @property
    def text_folder(self) -> Path:
        return self.shared or self.work

    def on(self, device: str) -> Self:
        """The same, computed on `device`."""
        return self.model_copy(update={"training": self.training.model_copy(update={"device": device})})

    @classmethod
    def load(cls, file: Path) -> Self:
        """Raises ConfigError that names the file and the key."""
        try:
            content = yaml.safe_load(file.read_text())
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not YAML: {error}") from None
        try:
            config = cls.model_validate(content)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            raise ConfigError(f"{file}: {'; '.join(faults)}") from None
        inner = {name: getattr(config, name).beside(file.parent) for name in ("target", "text")}
        return config.model_copy(update=inner).beside(file.parent)
