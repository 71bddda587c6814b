"""Builds engine/kernels/kernels.cpp, once for each instruction set. Everything else is in pyproject.toml.

No compiler, or another processor: nothing is built, and the engine computes with torch alone.
"""

import platform

from setuptools import Extension, setup

LEVELS = ("v3", "v4")  # AVX2 and FMA; AVX-512
FLAGS = ["-O3", "-std=c++17", "-fopenmp"]


def kernels(level: str) -> Extension:
    return Extension(
        f"engine.kernels._kernels_{level}",
        ["engine/kernels/kernels.cpp"],
        extra_compile_args=[*FLAGS, f"-march=x86-64-{level}"],
        extra_link_args=["-fopenmp"],
        optional=True,
    )


known = platform.system() == "Linux" and platform.machine() == "x86_64"
setup(ext_modules=[kernels(level) for level in LEVELS] if known else [])
