"""Builds the engines of the pools of a configuration, and joins both pools in one process."""

from local.build import Builder
from local.colocated import ColocatedEngine
from local.pair import Pair

__all__ = ["Builder", "ColocatedEngine", "Pair"]
