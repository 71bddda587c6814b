"""The state of one request while it is served; policy/journey.py changes it."""

import enum
from dataclasses import dataclass, field, replace

from engine.types import Chunk, Handoff, Request


class Phase(enum.Enum):
    NEW = "new"
    ROUTING = "routing"
    PREFILLING = "prefilling"
    LOCAL = "local"
    DECODING = "decoding"
    WAITING = "waiting"
    ENDED = "ended"


AT_REPLICAS = (Phase.PREFILLING, Phase.LOCAL, Phase.DECODING)
ELSEWHERE = (Phase.ROUTING, Phase.WAITING)


@dataclass
class RequestState:
    """The state of one request while it is served. Times are seconds on the driver's clock.

    `pool` is the decode pool that the request names or is assigned; `index` is its number among the
    answers to one prompt. If `numbered`, each attempt has an id of its own, because a replica may still know an earlier
    attempt. `prefills` counts the attempts. `cached_tokens` and `prompt_logprobs` are those of the first handoff.
    """

    request: Request
    arrived_at: float
    pool: str = ""
    index: int = 0
    numbered: bool = True
    phase: Phase = Phase.NEW
    prefills: int = 0
    losses: int = 0
    preemptions: int = 0
    tokens: list[int] = field(default_factory=list)
    handoff: Handoff | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[float, ...] = ()
    handed_over_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    first_chunk: Chunk | None = None
    last_chunk: Chunk | None = None

    @property
    def ended(self) -> bool:
        return self.phase is Phase.ENDED

    @property
    def deadline(self) -> float:
        """The moment at which the driver feeds DeadlinePassed."""
        return self.arrived_at + self.request.seconds_left

    @property
    def attempt_id(self) -> str:
        """The id under which replicas know the current attempt."""
        return f"{self.request.id}.{self.prefills}" if self.numbered else self.request.id

    def attempt(self, now: float) -> Request:
        """Return the request as the current attempt's replica gets it at `now`."""
        resumed = self.request.resumed(tuple(self.tokens)).aged(now - self.arrived_at)
        prompt_logprobs = self.request.prompt_logprobs and self.handoff is None
        return replace(resumed, id=self.attempt_id, prompt_logprobs=prompt_logprobs)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the arrival to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token; None before the end, and for an answer of one token."""
        if self.first_token_at is None or self.ended_at is None or len(self.tokens) < 2:
            return None
        seconds = self.ended_at - self.first_token_at
        return (len(self.tokens) - 1) / seconds if seconds > 0 else None

    @property
    def handoff_seconds(self) -> float | None:
        """Seconds from the end of prefill until decode had the pages; None if there were several attempts or if one
        replica did both."""
        timings = self.last_chunk.timings if self.last_chunk else None
        if self.first_token_at is None or self.handed_over_at is None or timings is None or self.prefills != 1:
            return None
        return self.first_token_at - self.handed_over_at + timings.wait_seconds + timings.transfer_seconds
