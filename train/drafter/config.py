"""The YAML file that `sparkpool train` reads. Relative paths in it start at the file's own folder."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from engine.errors import ConfigError
from engine.section import Positive, Section

JsonObject = dict[str, Any]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class TargetSection(Section):
    """The target: the model that the drafter drafts for, as the engine runs it."""

    path: Path
    """A checkpoint folder that the engine loads."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type of its weights, arithmetic and cache; the one that it will be served with."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class DrafterSection(Section):
    """The drafter's shape, in DeepSpec's terms. All other values follow from the target."""

    form: Literal["mla", "gqa"] | None = None
    """The kind of attention: `gqa` makes a Qwen3DSparkModel, as published; `mla` a DeepseekV3DSparkModel, whose pages
    are as small as a DeepSeek target's. None: the target's kind."""
    num_layers: Positive = 2
    """The number of layers of the backbone (published drafters: 5)."""
    target_layer_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    """Target layers, counted from 0, whose output is the drafter's context. The last layer cannot be one of them."""
    block_size: Annotated[int, Field(ge=1, le=64)] = 7
    """The number of drafts of a block."""
    mask_token_id: Annotated[int, Field(ge=0)]
    """A token that no text contains; it is the drafter's input at every position of a block but the first."""
    markov_rank: Annotated[int, Field(ge=0)] = 256
    """The rank of the Markov head; 0: no Markov head (DFlash)."""
    markov_head_type: Literal["vanilla", "gated", "rnn"] = "vanilla"
    """The kind of Markov head."""
    confidence_head: bool = True
    """Whether the drafter predicts how likely each draft is to be accepted."""
    backbone: JsonObject = Field(default_factory=dict)
    """Keys of config.json that replace those taken from the target."""
    copies: bool = False
    """Write copies of the target's embedding and head into the drafter's file, as published ones have them."""


class TextSection(Section):
    """The training text: prompts and the target's continuations of them."""

    prompts: Literal["corpus"] | Path = "corpus"
    """`corpus`: Python source of the installed packages. Or a JSON Lines file; a line has `prompt` (text), `messages`
    (for the chat template) or `prompt_token_ids`."""
    sequences: Positive = 2048
    """The number of sequences that the target writes; a file's prompts are reused in turn, with other seeds."""
    plain: Annotated[int, Field(ge=0)] = 0
    """The number of further sequences, taken from the corpus as it is."""
    tokens: Annotated[int, Field(ge=8)] = 2048
    """The maximum tokens of a sequence, prompt included. A prompt that leaves no room for a block is an error."""
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.8, 1.0, 1.0)
    """The target's sampling temperatures, used in turn."""
    ignore_eos: bool = False
    """Continue after the target's end token, up to `tokens`."""
    seed: int = 0
    """The seed of the target's sampling."""


class FeatureSection(Section):
    """The features: the target's hidden states, which are the drafter's input."""

    cache: bool = True
    """Compute them once and keep them on disk; false: compute them in every step, which takes time, not space."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The type in which they are kept."""


class LossSection(Section):
    """The weights of the three losses and of a block's positions (DSpark paper; DeepSpec, loss.py)."""

    cross_entropy: Share = 0.1
    """The weight of the cross-entropy of the drafts with `labels`."""
    labels: Literal["tokens", "distribution"] = "tokens"
    """`tokens`: the sequence's next tokens, as published. `distribution`: the target's distributions, from which small
    drafters learn faster."""
    l1: Share = 0.9
    """The weight of the L1 distance between the distributions of draft and target: twice the total variation."""
    confidence: Share = 1.0
    """The weight of the confidence's binary cross-entropy with the analytic acceptance, 1 - 0.5 L1."""
    position_decay: Rate = 4.0
    """Draft k has weight exp(-(k - 1) / position_decay)."""


class TrainingSection(Section):
    """The training loop. A step learns from `sequences` x `anchors` blocks, over all workers."""

    steps: Positive
    """The number of updates."""
    sequences: Positive = 12
    """The sequences of a step."""
    anchors: Positive = 40
    """The maximum blocks of a sequence (published: 512)."""
    losses: LossSection = LossSection()
    optimizer: Literal["adamw", "muon"] = "adamw"
    """The optimizer of the backbone's matrices; AdamW updates all other parameters in any case."""
    rate: Rate = 6e-4
    """The peak learning rate of the backbone's matrices; 0.02 is a good one for Muon."""
    markov_rate: Rate = 6e-4
    """The peak rate of the Markov head; its rows are pairs of tokens, updated rarely, so it needs a high one."""
    vector_rate: Rate = 6e-4
    """The peak rate of the norms and the confidence head."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """The share of the steps in which the rates rise."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The share of the peak rates that remains at the end of a half cosine."""
    clip: Rate = 1.0
    """The maximum norm of all gradients together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The type of the drafter's arithmetic; its weights are float32 during training."""
    device: str = "cpu"
    """A torch device."""
    checkpoint_steps: Positive = 100
    """The steps between two checkpoints, from which a later run continues."""
    seed: int = 0
    """The seed of initial weights, order of the text and anchors."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def rate_at(self, step: int) -> float:
        """Return the factor on every learning rate in `step` (from 0): a linear rise, a half cosine to `final_rate`."""
        rise = min(1.0, (step + 1) / max(1.0, self.warm_up * self.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rise * (self.final_rate + (1 - self.final_rate) * cosine)


class TrainConfig(Section):
    """The whole YAML file."""

    target: TargetSection
    out: Path
    """The drafter's folder: config.json and model.safetensors."""
    work: Path
    """The folder of text, features, checkpoint and metrics, from which an interrupted run continues."""
    shared: Path | None = None
    """Another folder for text and features, shared by several drafters of one target. None: `work`."""
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
        """Return the same configuration, computed on `device`."""
        return self.model_copy(update={"training": self.training.model_copy(update={"device": device})})

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a file. Raises ConfigError that names the file and the key."""
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
