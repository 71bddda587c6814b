"""The `config.json` of a drafter checkpoint in the published (DeepSpec) format: the target's keys and its own.

It is read as JSON, because transformers would drop or move keys that it does not expect.
"""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import CheckpointRefused

MODEL_TYPES = {"Qwen3DSparkModel": "qwen3", "DeepseekV3DSparkModel": "deepseek_v3"}


class DrafterConfig(BaseModel):
    """The keys that define the drafter. The architecture `DeepseekV3DSparkModel` is Sparkpool's own: the published
    format with latent attention, so that a drafter's cache entries are as small as its target's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str
    model_type: str
    hidden_size: int
    vocab_size: int
    rms_norm_eps: float
    num_target_layers: int
    num_hidden_layers: int = Field(gt=0)
    block_size: int = Field(gt=0, le=64)
    mask_token_id: int = Field(ge=0)
    target_layer_ids: tuple[int, ...] = Field(min_length=1)
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    markov_rank: int = Field(ge=0)
    markov_head_type: Literal["vanilla", "gated", "rnn"] = "vanilla"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is outside the vocabulary of {self.vocab_size}")
        if not self.markov_rank and self.enable_confidence_head and self.confidence_head_with_markov:
            raise ValueError("confidence_head_with_markov needs a markov_rank above 0")
        outside = [i for i in self.target_layer_ids if not 0 <= i < self.num_target_layers - 1]
        if outside:
            reach = f"layers 0 to {self.num_target_layers - 2} (the last one cannot be tapped)"
            raise ValueError(f"target_layer_ids {outside} are outside {reach}")
        if len(set(self.target_layer_ids)) < len(self.target_layer_ids):
            raise ValueError(f"target_layer_ids {list(self.target_layer_ids)} name a layer twice")
        return self

    @classmethod
    def load(cls, path: Path) -> tuple["DrafterConfig", dict[str, object]]:
        """Return the checked keys and the whole file. Raises CheckpointRefused, naming the key at fault."""
        file = path / "config.json"
        try:
            raw = json.loads(file.read_text())
        except OSError as error:
            raise CheckpointRefused(f"drafter {file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise CheckpointRefused(f"drafter {file}: not JSON ({error})") from None
        architecture = (raw.get("architectures") or ["none"])[0]
        if architecture not in MODEL_TYPES:
            raise CheckpointRefused(f"drafter {file}: architecture {architecture} is none of {', '.join(MODEL_TYPES)}")
        own = {**raw, "architecture": architecture, "model_type": MODEL_TYPES[architecture]}
        try:
            return cls.model_validate(own), raw
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
            raise CheckpointRefused(f"drafter {file}: {'; '.join(faults)}") from None
