"""Builds the statistics of replicas."""

from dataclasses import fields
from typing import Any

from engine.stats import (
    Counters,
    Forecast,
    Identity,
    PageCounts,
    PrefillQueue,
    ReplicaStats,
)

GROUPS = {"identity": Identity, "counters": Counters, "prefill_queue": PrefillQueue, "forecast": Forecast}


def replica(name: str = "a", role: str = "prefill", free: int = 100, total: int = 100, **changes: Any) -> ReplicaStats:
    """Return the statistics of an idle replica with `changes` to fields of any group."""
    given = {"role": role, "replica": name, "agent": name, "max_requests": 8} | changes
    groups = {
        group: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
        for group, kind in GROUPS.items()
    }
    given.setdefault("pages", {"full": PageCounts(total=total, free=free, held=total - free, quarantined=0)})
    return ReplicaStats(**groups, **given)
