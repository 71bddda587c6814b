"""Facts that cross processes: about a model, and about the steps of a replica. No torch here: policies import this."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.steptime import StepTimes

SYNTHETIC_WARNING = (
    "SYNTHETIC ACCEPTANCE: drafts are accepted at given rates (decode.POOL.synthetic_acceptance) instead of by the "
    "model; times are valid, tokens are not"
)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts of a model that callers may know. `max_tokens` counts prompt and output together; `kernels` names the
    kernels that compute it (engine/kernels)."""

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
    """The survival probability of drafts: `at[k]` is the share of drafts at position k of their block that are accepted
    together with all before them, measured or expected. It never rises with k."""

    at: Sequence[float] = ()

    def accepted_length(self, drafts: int) -> float:
        """Return the mean tokens that a step gives a request if the first `drafts` are verified."""
        return 1.0 + sum(self.at[:drafts])


@dataclass(frozen=True)
class Expected:
    """The expected throughput of steps that verify `drafts` of each request.

    `rate`: tokens per second of each request. `marginal_rate`: the tokens per second that one more verified token would
    add for all requests; negative if it costs more than it gives.
    """

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
    """Return the expected throughput of each of `requests` with the best number of drafts, or with `drafts`.

    It is theta of Algorithm 1 (DSpark paper) for equal requests: (1 + survival) over the seconds of a step that drafts
    and verifies, plus `overhead_seconds`. A step without drafts has no drafting time.
    """

    def rate(count: int) -> float:
        seconds = times.verify_seconds(requests, requests * (1 + count), context) + overhead_seconds
        seconds += times.draft_seconds(requests, context) if count else 0.0
        return survival.accepted_length(count) / seconds

    max_drafts = len(survival.at)
    best = max(range(max_drafts + 1), key=rate) if drafts is None else min(drafts, max_drafts)
    more = rate(best + 1) - rate(best) if best < max_drafts else 0.0
    return Expected(best, rate(best), more)
