"""Step times, for planner, pace, scaling and simulator. This module imports no torch.

A step of a decode replica drafts for `requests` requests and then verifies `tokens` tokens: each request's last
committed one and its drafts, so tokens = requests + drafts. `context` is the mean number of tokens in pages.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from engine.files import atomic_write


class StepTimes(Protocol):
    def draft_seconds(self, requests: int, context: int) -> float: ...
    def verify_seconds(self, requests: int, tokens: int, context: int) -> float: ...


def isotonic(values: Sequence[float]) -> list[float]:
    """Return the closest sequence that never falls (isotonic regression): falling neighbours become their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return [mean for mean, size in pools for _ in range(size)]


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of a count: measured at `counts`, interpolated between, extrapolated beyond the last."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def fitted(cls, counts: Sequence[int], seconds: Sequence[float]) -> "Curve":
        """Build a curve that never falls, so that noise cannot make more work look cheaper."""
        assert list(counts) == sorted(set(counts))
        return cls(tuple(counts), tuple(isotonic(seconds)))

    def at(self, count: int) -> float:
        if len(self.counts) == 1:
            return self.seconds[0]
        i = min(max(bisect_right(self.counts, count) - 1, 0), len(self.counts) - 2)
        x, y = self.counts[i : i + 2], self.seconds[i : i + 2]
        return max(y[0] + (count - x[0]) * (y[1] - y[0]) / (x[1] - x[0]), min(self.seconds[0], y[0]))


@dataclass(frozen=True)
class ProfiledTimes:
    """Step times measured on this machine when the replica started, all at context `context`. `verify` has a curve over
    tokens for some numbers of requests; times between them are interpolated."""

    key: dict[str, str]
    context: int
    draft: Curve
    verify: dict[int, Curve]

    def draft_seconds(self, requests: int, context: int) -> float:
        return self.draft.at(requests)

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        measured = sorted(self.verify)
        above = next((r for r in measured if r >= requests), measured[-1])
        below = next((r for r in reversed(measured) if r <= requests), measured[0])
        high, low = self.verify[above].at(tokens), self.verify[below].at(tokens)
        share = (requests - below) / (above - below) if above > below else 0.0
        return low + min(max(share, 0.0), 1.0) * (high - low)

    def save(self, file: Path) -> None:
        """Write the table atomically, because another replica may read it at the same time."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = asdict(self)
        content["verify"] = {str(requests): curve for requests, curve in content["verify"].items()}
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, file: Path, key: dict[str, str]) -> "ProfiledTimes | None":
        """Load a table, or None if the file is missing or for another key (model, device or number of threads).

        Raises OSError if the file cannot be read, and ValueError, naming it, if it is not a table.
        """
        if not file.exists():
            return None
        try:
            content = json.loads(file.read_text())
            if content["key"] != key:
                return None
            verify = {int(requests): _curve(curve) for requests, curve in content["verify"].items()}
            if not verify:
                raise ValueError("nothing was measured")
            return cls(key, int(content["context"]), _curve(content["draft"]), verify)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} holds no table of step times ({type(error).__name__}: {error})") from error


def _curve(content: dict[str, list[float]]) -> Curve:
    curve = Curve(tuple(int(count) for count in content["counts"]), tuple(float(value) for value in content["seconds"]))
    rises = [*curve.counts] == sorted(set(curve.counts)) and [*curve.seconds] == sorted(curve.seconds)
    if not (rises and len(curve.counts) == len(curve.seconds) > 0 and math.isfinite(sum(curve.seconds))):
        raise ValueError(f"{content} is not a curve: counts must rise, seconds must not fall")
    return curve
