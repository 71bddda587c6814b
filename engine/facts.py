"""Facts that cross processes: about a model, about a replica. No torch here: policies import this."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a caller may know of the model. `max_tokens` counts prompt and output together."""

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


@dataclass(frozen=True, kw_only=True)
class PageCounts:
    """Pages of one group by state. The states but `total` add up to it; the scratch page is in none."""

    total: int
    free: int
    held: int
    quarantined: int
    cached: int = 0


@dataclass
class Counters:
    """What an engine has done since it started. Of `prompt_tokens`, `prefix_hit_tokens` were in its pages already."""

    steps: int = 0
    tokens: int = 0
    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0

    def reset(self) -> None:
        """Forget what a warm-up did."""
        vars(self).update(vars(Counters()))


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """One replica, now. Counters only ever grow; the rest are levels. `role` is "prefill" or "decode"."""

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
    pages: dict[str, PageCounts]
    leases_held: int = 0
    leases_expired: int = 0
    reads: int = 0
    reads_lost: int = 0
    moved_bytes: int = 0
    moved_pages: int = 0
    transfer_seconds: float = 0.0
