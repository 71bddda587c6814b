"""Workloads of a simulation: when prompts arrive, how long they and their answers are, and which prefixes they
share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Self

OWN_IDS = 1 << 62
"""Tokens that no other request shares count up from here; those of named stretches begin at most at half of it."""
LONGEST_PROMPT = 1 << 24


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """A stretch of a prompt that other requests may share, known by its name. Of two that have one name, the longer
    begins with the shorter."""

    name: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request. `shared` fits into the prompt, and every count is above 0: those who make it check this."""

    at: float
    """Seconds from the start."""
    input_tokens: int
    output_tokens: int
    shared: tuple[PromptSegment, ...] = ()
    """From the beginning of the prompt, in order. What comes behind is this request's own."""
    domain: str = ""
    """What it is about: decides which acceptance of drafts to expect."""
    tier: str = ""

    @property
    def shared_tokens(self) -> int:
        return sum(segment.tokens for segment in self.shared)


@dataclass(frozen=True)
class Workload:
    """Arrivals, at least one, in the order of their times; those of one moment keep the order they were given in."""

    arrivals: tuple[Arrival, ...]

    def __post_init__(self) -> None:
        assert self.arrivals, "a workload has at least one arrival"
        object.__setattr__(self, "arrivals", tuple(sorted(self.arrivals, key=lambda arrival: arrival.at)))

    def __len__(self) -> int:
        return len(self.arrivals)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)

    @property
    def seconds(self) -> float:
        """Return the seconds from the start to the last arrival."""
        return self.arrivals[-1].at

    @property
    def requests_per_second(self) -> float:
        """Infinite if all arrive at the start."""
        return len(self) / self.seconds if self.seconds else math.inf

    @property
    def mean_input_tokens(self) -> float:
        return sum(arrival.input_tokens for arrival in self) / len(self)

    @property
    def mean_output_tokens(self) -> float:
        return sum(arrival.output_tokens for arrival in self) / len(self)

    @cached_property
    def repeated(self) -> float:
        """Return the share of all prompt tokens that an earlier prompt began with as well: what an unlimited cache
        saves."""
        longest: dict[tuple[int, str], int] = {}
        after: dict[tuple[int, PromptSegment], int] = {}
        known = 0
        for arrival in self:
            node = 0
            for segment in arrival.shared:
                seen = longest.get((node, segment.name), 0)
                known += min(seen, segment.tokens)
                longest[node, segment.name] = max(seen, segment.tokens)
                node = after.setdefault((node, segment), len(after) + 1)
        return known / sum(arrival.input_tokens for arrival in self)

    def scaled(self, rate_factor: float) -> Self:
        """The same requests, so many times as fast one after the other."""
        assert rate_factor > 0
        return replace(self, arrivals=tuple(replace(arrival, at=arrival.at / rate_factor) for arrival in self))

    def first(self, n: int) -> Self:
        return replace(self, arrivals=self.arrivals[:n])


def tokens_of(arrival: Arrival, index: int) -> tuple[int, ...]:
    """Token ids for the prompt of a workload's `index`-th arrival, below 2**63, the same in every process.

    Two stretches have ids in common only if they have one name: then as many as the shorter is long, from their
    beginning. (Names are placed by a hash of 61 bits: two of a million names of 1,000 tokens meet once in 2,000 tries.)
    """
    assert arrival.input_tokens <= LONGEST_PROMPT and 0 <= index < OWN_IDS // LONGEST_PROMPT
    tokens: list[int] = []
    for segment in arrival.shared:
        begin = _first_token(segment.name)
        tokens.extend(range(begin, begin + segment.tokens))
    begin = OWN_IDS + index * LONGEST_PROMPT
    tokens.extend(range(begin, begin + arrival.input_tokens - len(tokens)))
    return tuple(tokens)


def _first_token(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 3
