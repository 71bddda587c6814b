"""The configuration: one frozen model, read from one YAML file. Unknown keys and impossible pairs fail at start.

Every class receives its own section, never the whole. What start-up finds out (pages, limits) is `ModelFacts`.
"""

from engine.config.emulation import EmulationConfig
from engine.config.gateway import GatewayConfig
from engine.config.model import SHIPPED_DRAFTER, SHIPPED_MODEL, ModelConfig
from engine.config.pools import DecodeConfig, EngineConfig, PrefillConfig
from engine.config.scaling import ScaleConfig, TargetsConfig
from engine.config.service import Config
from engine.config.transfer import TransferConfig

__all__ = [
    "SHIPPED_DRAFTER",
    "SHIPPED_MODEL",
    "Config",
    "DecodeConfig",
    "EmulationConfig",
    "EngineConfig",
    "GatewayConfig",
    "ModelConfig",
    "PrefillConfig",
    "ScaleConfig",
    "TargetsConfig",
    "TransferConfig",
]
