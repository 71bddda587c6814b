"""The data types that engines, cluster and simulator share: requests, handoffs, and the events that engines emit.

A request's tokens:   prompt ++ generated   (`generated` is what the client has seen before a request is sent again)
A handoff's tokens:   those in pages, then `first`, whose keys and values no page holds yet
"""

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, groupby
from typing import Any

from engine.errors import BadRequest, SparkpoolError
from engine.facts import ModelFacts
from engine.stats import Acceptance

MAX_TOP_LOGPROBS = 20
NO_LIMIT = 2**31


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-text token, a stop token id or a stop string
    LENGTH = "length"  # max_tokens, or the model's limit
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 turn that filter off.

    `seed` keys the random noise; a request without one gets a random seed at the gateway and has `seeded` False.
    Penalties and biases change the logits first (engine/logits_processors.py), even of greedy requests. `bad_words` are
    token sequences that are never completed. `top_logprobs` counts the alternatives returned beside each sampled token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    seeded: bool = False
    top_logprobs: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def check(self) -> None:
        """Raise BadRequest for the first parameter that is out of range or contradicts another."""
        if not 0.0 <= self.temperature <= 100.0:  # also refuses NaN
            raise BadRequest("temperature", f"must be between 0 and 100, is {self.temperature}")
        if self.top_k < 0:
            raise BadRequest("top_k", f"must be 0 (off) or positive, is {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise BadRequest("top_p", f"must be in (0, 1], is {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise BadRequest("min_p", f"must be in [0, 1], is {self.min_p}")
        if not 0.0 < self.repetition_penalty <= 100.0:
            raise BadRequest("repetition_penalty", f"must be in (0, 100], is {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise BadRequest(name, f"must be in [-2, 2], is {getattr(self, name)}")
        if not all(-100.0 <= bias <= 100.0 for _, bias in self.logit_bias):
            raise BadRequest("logit_bias", "every bias must be in [-100, 100]")
        if not all(self.bad_words):
            raise BadRequest("bad_words", "has an empty word: each needs at least one token")
        if not 0 <= self.seed < 2**63:
            raise BadRequest("seed", f"must be in [0, 2**63), is {self.seed}")
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise BadRequest("top_logprobs", f"must be in [0, {MAX_TOP_LOGPROBS}], is {self.top_logprobs}")
        if self.greedy and self.seeded:
            raise BadRequest("seed", "contradicts temperature 0: greedy decoding uses no random numbers")
        if self.greedy and (self.top_k > 1 or self.top_p < 1.0 or self.min_p > 0.0):
            raise BadRequest("temperature", "is 0 (greedy), which contradicts top_k, top_p or min_p; set it above 0")


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """The rules that end a request. `max_tokens` counts all generated tokens, including those of earlier attempts.

    Before `min_tokens` neither an end-of-text nor a stop token can be sampled. A `stop` string ends the request when
    the text contains it, even across tokens; it is not part of the output.
    """

    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


def check_tokens(field_name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Raise BadRequest, naming `field_name`, for the first token outside the vocabulary."""
    bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise BadRequest(field_name, f"token {bad} is outside the vocabulary of {vocab_size}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as both pools get it. `generated` are tokens that the client already has.

    A lower `priority` is served first, then the older request. `age_seconds` and `seconds_left` are durations, relative
    to when a pool receives it, because two hosts share no clock. Only requests with the same `cache_salt` share pages.
    At most `max_drafts` drafted tokens are verified in a step; 0 turns speculation off.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    stop: StopRules
    generated: tuple[int, ...] = ()
    priority: int = 0
    age_seconds: float = 0.0
    seconds_left: float = math.inf
    cache_salt: str = ""
    prompt_logprobs: bool = False
    max_drafts: int = NO_LIMIT

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.generated

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def max_total_tokens(self) -> int:
        return len(self.prompt) + self.stop.max_tokens

    def precedence(self, arrived: float) -> tuple[int, float]:
        """Return the sort key: lower is served first and preempted last. `arrived` is when this replica received it."""
        return self.priority, arrived - self.age_seconds

    @property
    def needs_logits_processors(self) -> bool:
        """Return whether logits have to be changed before sampling."""
        s = self.sampling
        penalties = s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
        return penalties or bool(s.logit_bias or s.bad_words) or self.stop.min_tokens > 0

    def aged(self, seconds: float) -> "Request":
        """Return the same request `seconds` later."""
        return replace(self, age_seconds=self.age_seconds + seconds, seconds_left=self.seconds_left - seconds)

    def resumed(self, new_tokens: tuple[int, ...]) -> "Request":
        """Return the request to be prefilled again after the client has received `new_tokens` more."""
        return replace(self, generated=self.generated + new_tokens)

    def check(self, model: ModelFacts) -> None:
        """Raise BadRequest, naming the field, unless `model` can serve the request."""
        if not self.prompt:
            raise BadRequest("prompt", "is empty: at least one token is needed")
        check_tokens("token_ids", self.prompt, model.vocab_size)
        if len(self.prompt) >= model.max_tokens:
            limit = f"the model takes {model.max_tokens} tokens, prompt and output together"
            raise BadRequest("prompt", f"has {len(self.prompt)} tokens; {limit}")
        if self.stop.max_tokens < 1:
            raise BadRequest("max_tokens", f"must be at least 1, is {self.stop.max_tokens}")
        if self.max_total_tokens > model.max_tokens:
            over = f"prompt {len(self.prompt)} + max_tokens {self.stop.max_tokens} = {self.max_total_tokens}"
            raise BadRequest("max_tokens", f"{over} tokens; the model takes {model.max_tokens}")
        check_tokens("stop_token_ids", self.stop.stop_token_ids, model.vocab_size)
        if not 0 <= self.stop.min_tokens <= self.stop.max_tokens:
            raise BadRequest(
                "min_tokens", f"must be in [0, max_tokens {self.stop.max_tokens}], is {self.stop.min_tokens}"
            )
        if not all(self.stop.stop):
            raise BadRequest("stop", "has an empty string, which every text contains; leave it out")
        if self.max_drafts < 0:
            raise BadRequest("speculation.max_tokens", f"must not be negative, is {self.max_drafts}")
        self.sampling.check()
        check_tokens("logit_bias", [token for token, _ in self.sampling.logit_bias], model.vocab_size)
        check_tokens("bad_words", [t for word in self.sampling.bad_words for t in word], model.vocab_size)


@dataclass(frozen=True, kw_only=True)
class Region:
    """The memory of one page group as peers see it: `num_pages` records of `page_bytes` at `address`."""

    address: int
    num_pages: int
    page_bytes: int
    device: int = 0
    memory: str = "DRAM"  # or "VRAM"


@dataclass(frozen=True, kw_only=True)
class AgentEntry:
    """The address of a transfer agent for its peers. A restarted replica has a new `name`."""

    name: str
    metadata: bytes = field(repr=False)
    regions: dict[str, Region] = field(repr=False)
    rank: int = 0
    num_shards: int = 1


@dataclass(frozen=True, kw_only=True)
class PageSpan:
    """The pages of one group: the physical ids of logical pages `first_page`, `first_page + 1`, ..."""

    first_page: int
    page_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PrefillTimings:
    """Seconds that a request waited for the prefill engine, and was computed there."""

    queue_seconds: float
    prefill_seconds: float


TopLogprobs = tuple[tuple[int, float], ...]
"""The most likely tokens at one position and their log-probabilities, best first."""


@dataclass(frozen=True)
class SampledToken:
    """A sampled token, its log-probability under the unprocessed logits, and the most likely tokens beside it."""

    token: int
    logprob: float
    top: TopLogprobs = ()


@dataclass(frozen=True, kw_only=True)
class Handoff:
    """Everything that a decode replica needs to continue after `num_tokens` tokens whose keys and values are in pages.

    `lease_seconds` is how much of the lease was left when this was made: a duration, because two hosts share no clock.
    `drafter_hidden` is the last token's hidden state, for drafters that need it (MTP). `prompt_logprobs` are those of
    the prompt's tokens but the first, if requested. `cached_tokens` were prefix-cache hits.
    """

    request_id: str
    nonce: str
    num_tokens: int
    first: SampledToken
    spans: dict[str, PageSpan]
    agents: tuple[AgentEntry, ...]
    target_fingerprint: dict[str, str]
    drafter_fingerprint: dict[str, str] | None
    lease_seconds: float
    timings: PrefillTimings
    drafter_hidden: bytes | None = None
    prompt_logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0

    @property
    def num_pages(self) -> int:
        return sum(len(span.page_ids) for span in self.spans.values())


@dataclass(frozen=True, kw_only=True)
class DecodeTimings:
    """Seconds that a request spent in the phases of a decode replica, and the pages read for it. `overruns` are steps
    that took longer than they would on the `emulated` device."""

    wait_seconds: float
    transfer_seconds: float
    decode_seconds: float
    moved_bytes: int
    moved_pages: int
    emulated: str = ""
    overruns: int = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The output of one request in one or more steps. The last chunk has `finish`, `timings` and `acceptance`.

    Tuple fields have one entry for each token; `top` is empty if no top log-probabilities were requested.
    """

    request_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    top: tuple[TopLogprobs, ...] = ()
    finish: FinishReason | None = None
    timings: DecodeTimings | None = None
    acceptance: Acceptance | None = None

    @classmethod
    def joined(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """Concatenate text and per-token fields of one request's `chunks`; the other fields are the last chunk's."""
        last = chunks[-1]
        per_token = [f.name for f in fields(cls) if isinstance(getattr(last, f.name), tuple)]
        whole: dict[str, Any] = {n: tuple(chain.from_iterable(getattr(c, n) for c in chunks)) for n in per_token}
        return replace(last, text="".join(chunk.text for chunk in chunks), **whole)


@dataclass(frozen=True, kw_only=True)
class RequestEnded:
    """The engine has released everything it held for this request. `error` says why, if it failed."""

    request_id: str
    error: SparkpoolError | None = None


Event = Handoff | Chunk | RequestEnded


def merge_chunks(events: Iterable[Event]) -> list[Event]:
    """Return the events in order, with adjacent chunks of one request joined."""
    merged: list[Event] = []
    for _, run in groupby(events, lambda event: event.request_id if isinstance(event, Chunk) else None):
        neighbours = list(run)
        chunks = [event for event in neighbours if isinstance(event, Chunk)]
        merged += [Chunk.joined(chunks)] if len(chunks) > 1 else neighbours
    return merged
