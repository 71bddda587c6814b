"""The base class of everything that is read from a YAML file, and its kinds of numbers."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of a file. Unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def beside(self, folder: Path) -> Self:
        """Return a copy in which relative paths are relative to `folder`. Paths that are defaults stay as they are."""
        own = [(name, value) for name, value in self if name in self.model_fields_set]
        paths = {name: (folder / value).resolve() for name, value in own if isinstance(value, Path)}
        return self.model_copy(update=paths)
