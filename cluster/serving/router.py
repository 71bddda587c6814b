"""Sends a call to the replica that the gateway prefers: policy/ ranks replicas, Serve's router follows."""

from collections.abc import Sequence
from typing import TypeVar

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

R = TypeVar("R")
PATH = "cluster.serving.router.PreferenceRouter"


class PreferenceRouter(RequestRouter):  # type: ignore[misc] # Ray has no types
    """Tries a call's `preferred_replicas` (their unique ids) in order, then the others by the length of their queues.

    A replica that is gone or at its limit is skipped. A call without preferred replicas goes to the shortest queue.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        preferred_replicas: tuple[str, ...] = ()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # otherwise Serve calls this in a tight loop
            preferred_replicas = pending_request.kwargs.get("preferred_replicas", ())
        return ranked(preferred_replicas, {replica.replica_id.unique_id: replica for replica in candidate_replicas})


def ranked(preferred_replicas: Sequence[str], replicas: dict[str, R]) -> list[list[R]]:
    """Return groups of replicas in the order in which to try them."""
    preferred = [name for name in dict.fromkeys(preferred_replicas) if name in replicas]
    others = [replica for name, replica in replicas.items() if name not in preferred]
    return [*([replicas[name]] for name in preferred), *([others] if others else [])]
