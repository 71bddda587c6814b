"""Everything that computes here: torch, and every build of kernels.cpp that this processor runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import kernels
from engine.kernels import native
from engine.kernels.native import Library

LIBRARIES = list(native.builds(Path(os.environ.get("SANITIZED_KERNELS", native.FOLDER))))
each_build = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
IMPLEMENTATIONS: list[Library | None] = [None, *LIBRARIES]


def name_of(library: Library | None) -> str:
    return "torch" if library is None else library.name


@contextmanager
def chosen(library: Library | None) -> Iterator[str]:
    """While this is under way, models are loaded for `library`, or for torch alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: library)
        yield name_of(library)
