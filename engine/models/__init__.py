"""Checkpoints: a look before loading (`preflight`), loading through transformers (`load_model`)."""

from engine.models.load import LoadedModel, load_model
from engine.models.preflight import Preflight, preflight

__all__ = ["LoadedModel", "Preflight", "load_model", "preflight"]
