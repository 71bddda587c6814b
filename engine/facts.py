"""Facts that cross processes: about a model, and about the steps of a replica. No torch here: policies import this."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.steptime import StepTimes

SYNTHETIC_WARNING = (
    "SYNTHETIC ACCEPTANCE: drafts are accepted at given rates (decode.POOL.synthetic_acceptance), whatever the model "
    "thinks of them; times mean something, tokens do not"
)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a caller may know of the model. `max_tokens` counts prompt and output together; `kernels` names what
    computes it (engine/kernels)."""

    name: str
    architecture: str
    vocab_size: int
    max_tokens: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    page_tokens: int
    page_bytes: dict[str, int]
    fingerprint: dict[str, str]
    num_parameters: int
    kernels: str = "torch"


@dataclass(frozen=True)
class Survival:
    """How often the draft at each place of a block, first to last, was accepted together with all before it; for drafts
    that the target has not seen yet, how often it is expected to be. It never rises."""

    at: Sequence[float] = ()

    def accepted_length(self, drafts: int) -> float:
        """Tokens that a step of one request gives, in the mean, if the first `drafts` are verified."""
        return 1.0 + sum(self.at[:drafts])


@dataclass(frozen=True)
class Expected:
    """A step with so many `drafts` verified for each request: tokens per second of each request, and what one more
    verified token would add to the tokens per second of all of them (negative: it costs more than it gives)."""

    drafts: int
    rate: float
    marginal_rate: float


def expected_rate(
    times: StepTimes,
    survival: Survival,
    requests: int,
    context: int,
    overhead_seconds: float = 0.0,
    drafts: int | None = None,
) -> Expected:
    """What each of `requests` requests gets with as many drafts as are worth most, or with just so many `drafts`.

    The theta of Algorithm 1 (DSpark paper), for requests that are all alike: (1 + survival) over the seconds of a step
    that drafts, verifies and takes `overhead_seconds` besides. Without drafts, nothing is drafted either.
    """

    def rate(count: int) -> float:
        seconds = times.verify_seconds(requests, requests * (1 + count), context) + overhead_seconds
        seconds += times.draft_seconds(requests, context) if count else 0.0
        return survival.accepted_length(count) / seconds

    most = len(survival.at)
    best = max(range(most + 1), key=rate) if drafts is None else min(drafts, most)
    more = rate(best + 1) - rate(best) if best < most else 0.0
    return Expected(best, rate(best), more)
