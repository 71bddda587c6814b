"""Temperatures for a drafter's confidences, kept beside its weights (train/drafter/calibrate.py fits them)."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import CheckpointRefused

FILE = "calibration.json"


class Calibration(BaseModel):
    """A temperature for each position of a block: confidence = sigmoid(logit / temperature). `weights` is the digest
    of the drafter that they were fitted for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["sparkpool-calibration-1"] = "sparkpool-calibration-1"
    weights: str
    temperatures: tuple[Annotated[float, Field(gt=0)], ...]

    @classmethod
    def load(cls, drafter: Path, weights: str, block_length: int) -> "Calibration | None":
        """Load a drafter's calibration, or None without one. Raises CheckpointRefused if it is another drafter's."""
        file = drafter / FILE
        if not file.exists():
            return None
        try:
            found = cls.model_validate(json.loads(file.read_text()))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise CheckpointRefused(f"drafter {file}: {'; '.join(faults)}") from None
        except (OSError, ValueError) as error:
            raise CheckpointRefused(f"drafter {file}: cannot be read ({error})") from None
        if found.weights != weights:
            raise CheckpointRefused(
                f"drafter {file}: made for weights {found.weights}, this drafter has {weights}; calibrate it again"
            )
        if len(found.temperatures) != block_length:
            count = len(found.temperatures)
            raise CheckpointRefused(f"drafter {file}: {count} temperatures for a block of {block_length}")
        return found
