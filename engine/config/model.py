"""The section `model`: which checkpoint is served, and which drafter."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from engine.section import Section

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny-mla"
SHIPPED_DRAFTER = SHIPPED_MODEL.with_name("tiny-mla-dspark")


class ModelConfig(Section):
    """Which checkpoint, and how it is computed."""

    path: Path = SHIPPED_MODEL
    """A directory in Hugging Face format: config.json, *.safetensors, tokenizer files."""
    name: str = ""
    """The name clients may ask for; empty takes the directory's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights, arithmetic and cache."""
    page_tokens: Annotated[int, Field(ge=16, le=1024)] = 64
    """Tokens in a page; the same in both pools."""
    drafter: Literal["mtp"] | Path | None = None
    """A DSpark drafter for this model (a directory: config.json and *.safetensors in DeepSpec's format), or `mtp`: the
    next-token layer of the checkpoint itself. None: no speculation."""
    mtp_drafts: Annotated[int, Field(ge=1, le=16)] = 1
    """Tokens that `drafter: mtp` drafts in a step, one after the other."""

    @property
    def served_name(self) -> str:
        return self.name or self.path.name

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype
