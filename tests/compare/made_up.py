"""Devices with a known winner, and scenarios of them."""

from pathlib import Path
from typing import Any

import yaml

SAID = {"label": "inferred", "source": "made up for a test", "date": "2026-11-24"}
LOSSES = {"compute": 0.5, "memory": 0.5, "layer_us": 10, "step_us": 100, "source": "made up for a test"}


def figure(value: float | tuple[float, float], unit: str) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {"unknown": list(value), "unit": unit, "source": "made up for a test", "date": "2026-11-24"}
    return {"value": value, "unit": unit, **SAID}


def gpu(folder: Path, name: str, **changed: dict[str, Any]) -> str:
    """The file of a device that is as a GPU in all that is not changed."""
    content: dict[str, Any] = {
        "name": name,
        "kind": "gpu",
        "unit": "GPU",
        "memory": figure(100, "GB"),
        "bandwidth": figure(4, "TB/s"),
        "fp8": figure(1, "PFLOP/s"),
        "bf16": figure(0.5, "PFLOP/s"),
        "scale_up": figure(400, "GB/s"),
        "scale_up_units": figure(8, "count"),
        "hop": figure(2, "us"),
        "scale_out": figure(50, "GB/s"),
        "power": figure(1, "kW"),
        "cost": figure(2, "$/h"),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content | changed))
    return str(file)


def scenario(plain: str, special: str, **changed: Any) -> dict[str, Any]:
    """Qwen3-8B on the plain device, on it with DSpark, and decoded on the special one."""
    pool = {"device": plain, "units": [1]}
    return {
        "title": "made-up devices",
        "model": "qwen3-8b",
        "workload": {"input_tokens": 1000, "output_tokens": 200},
        "devices": {plain: {"losses": LOSSES}, special: {"losses": LOSSES}},
        "systems": {
            "plain": {"prefill": pool, "decode": pool},
            "DSpark": {"prefill": pool, "decode": pool, "drafts": "planned"},
            "special": {"prefill": pool, "decode": {"device": special, "units": [1]}, "drafts": "planned"},
        },
        "contenders": {"special": "DSpark"},
        "steps": ["plain", "DSpark", "special"],
        "max_requests": 64,
        "interactivity": [50, 100],
        "decide_at": [100],
        "traffic": 10_000,
        **changed,
    }
