"""Temperatures for a drafter's confidences, kept beside its weights (train/drafter/calibrate.py fits them)."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import CheckpointRefused

FILE = "calibration.json"


class Calibration(BaseModel):
    """`confidence = sigmoid(logit / temperature)`, a temperature for each place of a block. `weights` names the
    drafter that they were fitted for, as its fingerprint does."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["sparkpool-calibration-1"] = "sparkpool-calibration-1"
    weights: str
    temperatures: tuple[Annotated[float, Field(gt=0)], ...]

    @classmethod
    def load(cls, drafter: Path, weights: str, block_length: int) -> "Calibration | None":
        """That of a drafter's folder; None if there is none. Raises CheckpointRefused if it is another's."""
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
            raise CheckpointRefused(f"drafter {file}: made for weights {found.weights}, these are {weights}")
        if len(found.temperatures) != block_length:
            count = len(found.temperatures)
            raise CheckpointRefused(f"drafter {file}: {count} temperatures for a block of {block_length}")
        return found
