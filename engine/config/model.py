"""The section `model`: which checkpoint is served, and which drafter."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from engine.section import Section

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny-mla"
SHIPPED_DRAFTER = SHIPPED_MODEL.with_name("tiny-mla-dspark")


class ModelConfig(Section):
    """The model that is served."""

    path: Path = SHIPPED_MODEL
    """A directory with a checkpoint in Hugging Face format: config.json, *.safetensors and tokenizer files."""
    name: str = ""
    """The name of the model for clients. Empty: the name of the directory `path`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The data type of weights, arithmetic and KV cache."""
    page_tokens: Annotated[int, Field(ge=16, le=1024)] = 64
    """Tokens of a page of the KV cache, 16 to 1024; the same in both pools."""
    drafter: Literal["mtp"] | Path | None = None
    """The drafter for speculative decoding: the directory of a DSpark drafter (config.json and *.safetensors in
    DeepSpec's format), or `mtp` for the checkpoint's own multi-token-prediction layer. None: no speculation."""
    mtp_drafts: Annotated[int, Field(ge=1, le=16)] = 1
    """Tokens that `drafter: mtp` drafts in a step, 1 to 16, one after the other."""

    @property
    def served_name(self) -> str:
        return self.name or self.path.name

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype
