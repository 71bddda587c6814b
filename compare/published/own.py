"""Predictions of this project's own cluster against what it then did: what `make bench NAME=prediction` wrote."""

import json
from collections.abc import Iterator
from pathlib import Path

from compare.published.checks import Check
from engine.errors import ConfigError

OWN = "this project's own cluster"
TABLE = "predicted over measured"
FIGURES = {
    "throughput": ("tok_s", "tok/s"),
    "tpot": ("tpot_ms", "ms a token"),
    "ttft50": ("ttft50_ms", "ms to the first token, median"),
    "ttft95": ("ttft95_ms", "ms to the first token, 95th percentile"),
}
"""Each figure's key in the file, and its unit."""


def own_checks(file: Path) -> Iterator[Check]:
    """One for each figure of each run. Raises ConfigError that names the file."""
    try:
        content = json.loads(file.read_text())
        machine = content["machine"]
        source = f"{file.name}, {content['date'][:10]}, {machine['cores']} cores {machine['cpu']}, {machine['device']}"
        for row in content["figures"][TABLE]:
            what = f"{row['side']}, {row['concurrency']} requests"
            for key, (name, unit) in FIGURES.items():
                measured, spread = float(row[name]), float(row[f"{key}_spread"])
                note = f"three runs differ by {100 * spread:.0f}%"
                predicted = measured * float(row[f"{key}_ratio"])
                yield Check(OWN, what, predicted, measured, unit, source, "measured", note=note)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is not what `make bench NAME=prediction` writes: {error!r}") from None
