"""The gateway's board (policy/board.py), and how it is kept up: replicas are asked while requests come."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable

from engine.config import Config
from engine.errors import Unavailable
from engine.facts import ReplicaStats
from local.policies import routing_rules
from policy.board import Board

logger = logging.getLogger("ray.serve")
FRESH_SECONDS = 0.25  # what replicas said within so long is not asked again
OLD_SECONDS = 2.0  # what they said longer ago is not used before it has been asked again
FIRST_SECONDS = 1.0  # how long a request waits for that


class LiveBoard(Board):
    """Asks the replicas themselves, by `ask`."""

    def __init__(
        self,
        config: Config,
        ask: Callable[[], Awaitable[list[ReplicaStats]]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(routing_rules(config))
        self._ask = ask
        self._now = now
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """See to it that what is known is not old. Waits only if it is, and never long."""
        age = self._now() - self._asked_at
        if age > FRESH_SECONDS and (self._asking is None or self._asking.done()):
            # in an empty context, or Serve would take it for a part of this request, and cancel it with that
            self._asking = asyncio.get_running_loop().create_task(self._update(), context=contextvars.Context())
        if age > OLD_SECONDS and self._asking is not None:
            await asyncio.wait([self._asking], timeout=FIRST_SECONDS)

    async def _update(self) -> None:
        self._asked_at = self._now()
        then = self.sent()
        try:
            self.heard(await self._ask(), then)
        except (Unavailable, TimeoutError) as error:
            logger.info(f"requests go by what replicas said before: {error}")
