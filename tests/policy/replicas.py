"""Replicas as they might describe themselves."""

from engine.facts import PageCounts, ReplicaStats


def replica(
    name: str = "a", role: str = "prefill", free: int = 100, total: int = 100, **changes: object
) -> ReplicaStats:
    """An idle one, but for `changes`."""
    fields: dict[str, object] = {n: 0 for n, f in ReplicaStats.__dataclass_fields__.items() if f.type in (int, float)}
    fields |= {
        "role": role,
        "replica": name,
        "agent": name,
        "verified_at": [],
        "accepted_at": [],
        "max_requests": 8,
        "pages": {"full": PageCounts(total=total, free=free, held=total - free, quarantined=0)},
    }
    return ReplicaStats(**{**fields, **changes})  # type: ignore[arg-type]
