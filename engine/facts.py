"""Facts that cross processes: about a model, about a replica. No torch here: policies import this."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True, kw_only=True)
class PageCounts:
    """Pages of one group by state. The states but `total` add up to it; the scratch page is in none."""

    total: int
    free: int
    held: int
    quarantined: int
    cached: int = 0


@dataclass
class Drafts:
    """What became of drafted tokens: those `verified` were put before the target, those `accepted` became part of an
    answer besides the one token that a step gives anyway.

    `verified_at[j]` and `accepted_at[j]` count the drafts at place j of their block: their ratio is the acceptance
    there. A draft beyond the end of its answer was verified and is not accepted.
    """

    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    verified_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)

    def count(self, drafted: int, verified: int, accepted: int) -> None:
        """One more step of one request: of its drafts the first `verified`, and of those the first `accepted`."""
        self.drafted += drafted
        self.verified += verified
        self.accepted += accepted
        new = [0] * (verified - len(self.verified_at))
        self.verified_at += new
        self.accepted_at += new
        for place in range(verified):
            self.verified_at[place] += 1
            self.accepted_at[place] += place < accepted


@dataclass
class Acceptance(Drafts):
    """What became of one request's drafts in a decode replica, in its `steps` there: it said steps + accepted tokens
    after the first, so 1 + accepted / steps is its accepted length. `synthetic`: see SYNTHETIC_WARNING."""

    steps: int = 0
    synthetic: bool = False

    def count(self, drafted: int, verified: int, accepted: int) -> None:
        super().count(drafted, verified, accepted)
        self.steps += 1


@dataclass
class Counters(Drafts):
    """What an engine has done since it started. Of `prompt_tokens`, `prefix_hit_tokens` were in its pages already.

    Of `step_seconds`, models took `compute_seconds`; the rest is the engine's own: schedule, batches, sampling, text.
    The seconds are sums over steps: `draft_seconds`, `plan_seconds` and `verify_seconds` of decode/step_result.py:
    StepTimestamps. `handoffs_without_context` came without the drafter's part of their pages, to an engine that drafts.
    `overruns`: steps that took longer than they would on the device that is emulated.
    """

    steps: int = 0
    tokens: int = 0
    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    handoffs_without_context: int = 0
    draft_seconds: float = 0.0
    plan_seconds: float = 0.0
    verify_seconds: float = 0.0
    step_seconds: float = 0.0
    compute_seconds: float = 0.0
    overruns: int = 0

    def reset(self) -> None:
        """Forget what a warm-up did."""
        vars(self).update(vars(Counters()))


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


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """One replica, now. Counters only ever grow; the rest are levels. `role` is "prefill" or "decode"; `synthetic` says
    that it accepts drafts as SYNTHETIC_WARNING has it; `emulated` names the device whose pace it keeps, and `overruns`
    counts the steps that could not. `peak_bytes`: the most memory that its process has held so far,
    on its device.

    What routing, admission and scaling go by. Prefill: `queued_tokens` of prompts that are not computed yet, by
    priority; the seconds of a step of one token (`least_seconds`) and the tokens per second of full steps. Decode:
    `rates`, the tokens per second that each request would get if there were so many, as steps and drafts go now; and of
    the requests that run, the mean `accepted_length`, drafts verified in a step (`budget`), and what one more verified
    token would be worth (`marginal_rate`, tokens per second of all). Empty or 0: not known yet."""

    role: str
    replica: str = ""
    pool: str = ""
    agent: str
    waiting: int
    running: int
    steps: int
    tokens: int
    requests: int
    failed: int
    cancelled: int
    preempted: int
    prompt_tokens: int
    prefix_hit_tokens: int
    drafted: int
    verified: int
    accepted: int
    verified_at: list[int]
    accepted_at: list[int]
    handoffs_without_context: int
    draft_seconds: float
    plan_seconds: float
    verify_seconds: float
    step_seconds: float
    compute_seconds: float
    overruns: int = 0
    synthetic: bool = False
    emulated: str = ""
    peak_bytes: int = 0
    max_requests: int = 0
    queued_tokens: dict[int, int] = field(default_factory=dict)
    least_seconds: float = 0.0
    tokens_per_second: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    accepted_length: float = 0.0
    budget: float = 0.0
    marginal_rate: float = 0.0
    pages: dict[str, PageCounts]
    leases_held: int = 0
    leases_expired: int = 0
    reads: int = 0
    reads_lost: int = 0
    moved_bytes: int = 0
    moved_pages: int = 0
    transfer_seconds: float = 0.0
    local_prefills: int = 0
    local_tokens: int = 0
