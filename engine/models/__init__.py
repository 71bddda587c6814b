"""Checkpoints: checks before loading (`preflight`), and loading through transformers (`load_model`)."""

from engine.models.load import LoadedModel, entries_of, load_model
from engine.models.preflight import Preflight, examine, preflight

__all__ = ["LoadedModel", "Preflight", "entries_of", "examine", "load_model", "preflight"]
