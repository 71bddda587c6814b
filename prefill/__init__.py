"""prompt -> pages: the engine of the prefill pool."""

from prefill.prefiller import Prefiller

__all__ = ["Prefiller"]
