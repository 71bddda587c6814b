"""Atomic writing of files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `file` at the end, or is deleted after an error.

    If two processes write the same file, one of the two versions stays, whole.
    """
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
