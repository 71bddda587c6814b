"""Kept work is used again only for the target and the settings it was made for."""

import json
from collections.abc import Mapping
from pathlib import Path

from engine.errors import ConfigError


def claim(file: Path, own: Mapping[str, object], made: str, remedy: str) -> None:
    """Write to `file` whose work its folder holds, or check that it is `own`. Raises ConfigError."""
    if not file.exists():
        file.write_text(json.dumps(own, indent=1) + "\n")
    require_same(file, json.loads(file.read_text()), own, made, remedy)


def require_same(file: Path, stored: Mapping[str, object], own: Mapping[str, object], made: str, remedy: str) -> None:
    """Raise ConfigError that names the first value in which `stored` differs, and says `made` and the `remedy`."""
    before, now = _flat(stored), _flat(own)
    for name in [*now, *sorted(before.keys() - now.keys())]:
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{file}: {name} was {before.get(name)!r} when {made}, now it is {now.get(name)!r}; {remedy}"
            )


def _flat(parts: Mapping[str, object]) -> dict[str, object]:
    """Name the values of each part `part.name`."""
    found: dict[str, object] = {}
    for part, content in parts.items():
        values = content if isinstance(content, Mapping) else {"": content}
        found |= {f"{part}.{name}" if name else part: value for name, value in values.items()}
    return found
