"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A name to write to, which becomes `file` at the end; after an error nothing is left of it. Another process may
    write the same file meanwhile: one of the two stays."""
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
