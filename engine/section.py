"""The base class of everything that is read from a YAML file, its kinds of numbers, and the check of such a file."""

from pathlib import Path
from typing import Annotated, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engine.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
T = TypeVar("T")


class Section(BaseModel):
    """A frozen part of a file. Unknown keys are errors; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def beside(self, folder: Path) -> Self:
        """Return a copy in which relative paths are relative to `folder`. Paths that are defaults stay as they are."""
        own = [(name, value) for name, value in self if name in self.model_fields_set]
        paths = {name: (folder / value).resolve() for name, value in own if isinstance(value, Path)}
        return self.model_copy(update=paths)


def read_yaml(file: Path, kind: type[T]) -> T:
    """Read and check a YAML file. Raise ConfigError that names the file and every wrong key."""
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    return validated(content, kind, str(file))


def validated(content: object, kind: type[T], source: str) -> T:
    """Check the content of a file. Raise ConfigError that names `source` and every wrong key."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{source}: {'; '.join(lines)}") from None
