"""How a call reaches the replica that the gateway wants: policy/ ranks, Serve's router obeys."""

from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

PATH = "cluster.router.WishRouter"


class WishRouter(RequestRouter):  # type: ignore[misc] # Ray has no types
    """Tries a call's `preferred_replicas`, unique ids of replicas, in their order; then the others, the
    shortest queue first.

    A replica that is gone or at its limit is passed over. A call without preferred_replicas goes to the shortest queue.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        preferred_replicas: tuple[str, ...] = ()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # or Serve asks again at once, without end
            preferred_replicas = pending_request.kwargs.get("preferred_replicas", ())
        return ranked(preferred_replicas, {replica.replica_id.unique_id: replica for replica in candidate_replicas})


def ranked(preferred_replicas: Sequence[str], replicas: dict[str, Any]) -> list[list[Any]]:
    """Groups of replicas, to be tried one after the other."""
    wished = [wish for wish in dict.fromkeys(preferred_replicas) if wish in replicas]
    others = [replica for name, replica in replicas.items() if name not in wished]
    return [*([replicas[wish]] for wish in wished), *([others] if others else [])]
