"""What every section of the configuration is, and the kinds of numbers in it."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def beside(self, folder: Path) -> Self:
        """The same, with its relative paths begun at `folder`. A default stays one, of whichever machine reads it."""
        own = [(name, value) for name, value in self if name in self.model_fields_set]
        paths = {name: (folder / value).resolve() for name, value in own if isinstance(value, Path)}
        return self.model_copy(update=paths)
