"""From a configuration to the parts of a pool, and both pools in one process."""

from local.build import Builder
from local.pair import Pair

__all__ = ["Builder", "Pair"]
