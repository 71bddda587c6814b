"""Statistics of replicas, requests and gateways. Each is declared here, once, with its unit in the text below it.

A group of statistics is a dataclass, and `a + b` follows from its shape: numbers add up, lists add up element by
element, dictionaries key by key; texts and flags are those of `a`. cluster/proto has the same groups, fields and texts.
No torch here: policies import this.
"""

from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from typing import Any, Self


class Summable:
    """Gives a dataclass the `+` that its shape implies."""

    def __add__(self, other: Self) -> Self:
        total: Self = _sum(self, other)
        return total


def _sum(one: Any, other: Any) -> Any:
    match one:
        case bool() | str():
            return one
        case int() | float():
            return one + other
        case list():
            return [a + b for a, b in zip_longest(one, other, fillvalue=0)]
        case dict():
            both = {key: _sum(one[key], other[key]) for key in one.keys() & other.keys()}
            return {**one, **other, **both}
    return type(one)(**{f.name: _sum(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)})


@dataclass
class Drafts(Summable):
    """Counts drafted tokens. A draft beyond the end of its answer counts as verified and not as accepted."""

    drafted: int = 0
    """Tokens drafted."""
    verified: int = 0
    """Drafts that the target model verified."""
    accepted: int = 0
    """Drafts that became part of an answer, in addition to the one token that every step gives."""
    verified_at: list[int] = field(default_factory=list)
    """`verified` by position in the draft block, first to last."""
    accepted_at: list[int] = field(default_factory=list)
    """`accepted` by position in the draft block; divided by `verified_at`, the acceptance rate at each position."""

    def count(self, drafted: int, verified: int, accepted: int) -> None:
        """Add one step of one request: it verified the first `verified` drafts and accepted the first `accepted`."""
        self.drafted += drafted
        self.verified += verified
        self.accepted += accepted
        new = [0] * (verified - len(self.verified_at))
        self.verified_at += new
        self.accepted_at += new
        for position in range(verified):
            self.verified_at[position] += 1
            self.accepted_at[position] += position < accepted


@dataclass
class Acceptance(Drafts):
    """The drafts of one request in its last decode replica. Its accepted length is 1 + accepted / steps: the first
    token of the answer came from prefill."""

    steps: int = 0
    """Decode steps that gave the request tokens."""
    synthetic: bool = False
    """Whether drafts were accepted at given rates: then the tokens are not the model's own."""

    def count(self, drafted: int, verified: int, accepted: int) -> None:
        super().count(drafted, verified, accepted)
        self.steps += 1


@dataclass
class Counters(Drafts):
    """Counts the work of an engine since it started; these only grow. Seconds are sums over steps."""

    steps: int = 0
    """Engine steps that computed something; in a decode replica, decode steps only."""
    tokens: int = 0
    """Prompt tokens computed (prefill), or tokens generated (decode)."""
    requests: int = 0
    """Requests taken in."""
    failed: int = 0
    """Requests that ended with an error."""
    cancelled: int = 0
    """Requests that were cancelled before their end."""
    preempted: int = 0
    """Times that a request gave up its pages to one with precedence."""
    prompt_tokens: int = 0
    """Tokens of the prompts taken in."""
    prefix_hit_tokens: int = 0
    """Prompt tokens whose pages were in this replica already."""
    handoffs_without_context: int = 0
    """Handoffs without the drafter's part of their pages: here the replica drafts from what it decodes itself."""
    draft_seconds: float = 0.0
    """Seconds of drafting."""
    plan_seconds: float = 0.0
    """Seconds of planning how many drafts to verify."""
    verify_seconds: float = 0.0
    """Seconds from the plan until the step's tokens are on the host. On CUDA, `plan_seconds` or this includes the wait
    for the drafts."""
    step_seconds: float = 0.0
    """Seconds of whole steps that computed something."""
    compute_seconds: float = 0.0
    """Seconds of `step_seconds` in models, the wait for their results included; the rest is the engine's own work."""
    overruns: int = 0
    """Steps that took longer here than on the device that is emulated."""
    local_prefills: int = 0
    """Requests that this decode replica prefilled itself."""
    local_tokens: int = 0
    """Prompt tokens computed in this decode replica itself."""

    def reset(self) -> None:
        """Set all counters to 0, after a warm-up."""
        vars(self).update(vars(Counters()))

    def snapshot(self) -> "Counters":
        """Return a copy that later steps leave as it is."""
        return replace(self, verified_at=[*self.verified_at], accepted_at=[*self.accepted_at])


@dataclass(frozen=True, kw_only=True)
class Identity(Summable):
    """Identifies a replica."""

    role: str
    """"prefill" or "decode"."""
    pool: str = ""
    """"prefill", or the name of the decode pool."""
    replica: str = ""
    """Unique id of the replica in Ray Serve."""
    agent: str
    """Name of the transfer agent; a restarted replica has a new one."""
    emulated: str = ""
    """Device whose step times the replica keeps to; empty if it runs at its own pace."""
    synthetic: bool = False
    """Whether drafts are accepted at given rates: then the tokens are not the model's own."""


@dataclass(frozen=True, kw_only=True)
class PageCounts(Summable):
    """Pages of one page group by state. `free`, `held`, `quarantined` and `cached` add up to `total`."""

    total: int
    """Pages of the group, without the scratch page."""
    free: int
    """Pages that hold nothing."""
    held: int
    """Pages of requests that are being served or under a lease."""
    quarantined: int
    """Pages of requests that ended while a transfer into them was under way."""
    cached: int = 0
    """Pages that no request holds, kept for prefix hits; they are reused when free ones run out."""


@dataclass(frozen=True, kw_only=True)
class PrefillQueue(Summable):
    """The queue of prompts in a replica that prefills, and its speed."""

    queued_tokens: dict[int, int] = field(default_factory=dict)
    """Prompt tokens not computed yet, by request priority."""
    min_step_seconds: float = 0.0
    """Seconds of a prefill step of one token; 0 until measured."""
    tokens_per_second: float = 0.0
    """Prompt tokens per second of full prefill steps; 0 until measured."""


@dataclass(frozen=True, kw_only=True)
class Forecast(Summable):
    """The rates that a decode replica gives its requests, from recent steps; 0 or empty until measured."""

    request_rates: dict[int, float] = field(default_factory=dict)
    """Tokens per second that each request would get, by the number of running requests."""
    accepted_length: float = 0.0
    """Mean tokens that a step gives a request."""
    verified_per_step: float = 0.0
    """Mean drafts verified in a step, over all its requests."""
    marginal_rate: float = 0.0
    """Tokens per second, over all requests, that verifying one more draft in each step would add."""


@dataclass(frozen=True, kw_only=True)
class Transfers(Summable):
    """Pages that a decode replica has read from prefill replicas since it started."""

    reads: int = 0
    """Reads posted, one per handoff."""
    reads_lost: int = 0
    """Reads that failed or ended after their lease: the request is prefilled again."""
    moved_bytes: int = 0
    """Bytes read."""
    moved_pages: int = 0
    """Pages read."""
    transfer_seconds: float = 0.0
    """Sum of the seconds of all reads, from posting a read to its end."""


@dataclass(frozen=True, kw_only=True)
class Leases(Summable):
    """Leases that a prefill replica gives on computed pages until a decode replica has read them."""

    held: int = 0
    """Leases that run now."""
    expired: int = 0
    """Leases that ran out before their pages were released, since the replica started."""


@dataclass(frozen=True, kw_only=True)
class ReplicaStats(Summable):
    """One replica, now."""

    identity: Identity
    waiting: int = 0
    """Requests that wait for pages or for room in the batch."""
    running: int = 0
    """Requests in the batch."""
    max_requests: int = 0
    """Requests that may be in the batch at once."""
    peak_bytes: int = 0
    """Largest number of bytes that the process has held on its device so far."""
    counters: Counters = field(default_factory=Counters)
    pages: dict[str, PageCounts] = field(default_factory=dict)
    prefill_queue: PrefillQueue = PrefillQueue()
    forecast: Forecast = Forecast()
    transfers: Transfers = Transfers()
    leases: Leases = Leases()

    @property
    def name(self) -> str:
        """The replica's unique id."""
        return self.identity.replica

    def named(self, replica: str, pool: str) -> "ReplicaStats":
        """Return the same with the names that the cluster gave the replica."""
        return replace(self, identity=replace(self.identity, replica=replica, pool=pool))


@dataclass
class GatewayCounters(Summable):
    """One gateway replica: the requests it has had since it started."""

    requests: int = 0
    """Requests that came in; each of the `n` answers to a prompt counts."""
    ongoing: int = 0
    """Requests being served now."""
    failed: int = 0
    """Requests that ended with an error."""
    cancelled: int = 0
    """Requests that their client cancelled."""
    refused: int = 0
    """Requests turned away because a queue was full or their deadline could not be met."""
    prefills_repeated: int = 0
    """Prompts prefilled again because a replica or a handoff was lost."""
    preemptions: int = 0
    """Requests prefilled again because they had given up their pages to another."""
