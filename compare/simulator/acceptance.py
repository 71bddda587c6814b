"""Acceptance of simulated drafts: from rates by position, or from blocks that a replica has recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from decode.record import read
from engine.errors import ConfigError


@dataclass(frozen=True)
class DraftOutcome:
    """Drafts of one request: the drafter's confidence in each if those before it survive, and how many do."""

    confidence: tuple[float, ...]
    survives: int


class AcceptanceModel(Protocol):
    @property
    def block_length(self) -> int:
        """Drafts of a block."""
        ...

    def block(self, domain: str, draw: Random) -> DraftOutcome:
        """The next block of a request of that domain."""
        ...

    def survival(self, domain: str) -> tuple[float, ...]:
        """Return how often the draft at each position is accepted together with all before it."""
        ...


@dataclass(frozen=True)
class Rates:
    """Rates by position: the draft at position j is accepted with `by_domain[d][j]` if those before it were, each by
    itself, and the drafter knows it. `""` is for every domain that is not there."""

    by_domain: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.by_domain or any(not rates for rates in self.by_domain.values()):
            raise ConfigError("acceptance: no rates")
        for domain, rates in self.by_domain.items():
            if not all(0.0 <= rate <= 1.0 for rate in rates):
                raise ConfigError(f"acceptance.{domain or 'rates'}: {rates} are no probabilities")
        if len({len(rates) for rates in self.by_domain.values()}) > 1:
            raise ConfigError("acceptance: domains differ in the length of a block")

    @classmethod
    def of(cls, *rates: float) -> "Rates":
        """The same for every domain."""
        return cls({"": rates})

    @classmethod
    def of_lengths(cls, *accepted_length: float) -> "Rates":
        """Make rates of the mean tokens of a step with 1, 2, ... drafts, as papers publish them: 1.79, 2.27, ..."""
        survival = [b - a for a, b in zip((1.0, *accepted_length), accepted_length, strict=False)]
        before = [1.0, *survival]
        if any(later > earlier + 1e-9 for earlier, later in zip(before, survival, strict=False)) or min(survival) < 0:
            raise ConfigError(
                f"acceptance: {accepted_length} is no accepted length: each draft adds less than the last"
            )
        return cls.of(*(s / b if b else 0.0 for s, b in zip(survival, before, strict=False)))

    @property
    def block_length(self) -> int:
        return len(next(iter(self.by_domain.values())))

    def block(self, domain: str, draw: Random) -> DraftOutcome:
        rates = self._rates(domain)
        survives = next((position for position, rate in enumerate(rates) if draw.random() >= rate), len(rates))
        return DraftOutcome(rates, survives)

    def survival(self, domain: str) -> tuple[float, ...]:
        found, product = [], 1.0
        for rate in self._rates(domain):
            product *= rate
            found.append(product)
        return tuple(found)

    def _rates(self, domain: str) -> tuple[float, ...]:
        rates = self.by_domain.get(domain, self.by_domain.get(""))
        if rates is None:
            raise ConfigError(
                f"acceptance: nothing is known of domain {domain!r}; {', '.join(self.by_domain)} are known"
            )
        return rates


class Recorded:
    """Blocks as replicas wrote them (decode/record.py), drawn with replacement.

    Of a block that was not verified to its end and survived as far as it was, the rest is decided by its confidences:
    each draft survives with the chance that the drafter gave it.
    """

    def __init__(self, blocks: Sequence[tuple[tuple[float, ...], int, int]]) -> None:
        """(confidence, verified, accepted) of each block."""
        if not blocks:
            raise ConfigError("acceptance: no block was recorded")
        self._blocks = list(blocks)
        self.block_length = max(len(confidence) for confidence, _, _ in blocks)

    @classmethod
    def load(cls, *files: Path) -> "Recorded":
        """Raises ConfigError, naming the file, for one that holds no steps with drafts and confidences."""
        blocks: list[tuple[tuple[float, ...], int, int]] = []
        for file in files:
            try:
                header, steps = read(file)
                if header.synthetic:
                    raise ConfigError(f"{file}: synthetic acceptance was recorded: those drafts say nothing")
                for step in steps:
                    rows = zip(step.confidence, step.lengths, step.accepted, strict=False)
                    blocks += [(tuple(row), length, accepted) for row, length, accepted in rows if row and length]
            except (ValueError, TypeError, OSError) as error:
                raise ConfigError(f"{file}: {error}") from None
        if not blocks:
            raise ConfigError(f"{', '.join(map(str, files))}: no step with verified drafts and confidences")
        return cls(blocks)

    def block(self, domain: str, draw: Random) -> DraftOutcome:
        confidence, verified, accepted = self._blocks[draw.randrange(len(self._blocks))]
        if accepted < verified:
            return DraftOutcome(confidence, accepted)
        rest = enumerate(confidence[verified:], start=verified)
        return DraftOutcome(
            confidence, next((position for position, chance in rest if draw.random() >= chance), len(confidence))
        )

    def survival(self, domain: str) -> tuple[float, ...]:
        """Return the mean over all blocks; drafts that were not verified count with their expected survival."""
        totals = [0.0] * self.block_length
        for confidence, verified, accepted in self._blocks:
            chance = 1.0
            for position, believed in enumerate(confidence):
                chance = float(accepted > position) if position < verified else chance * believed
                totals[position] += chance
        return tuple(total / len(self._blocks) for total in totals)
