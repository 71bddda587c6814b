"""The gateway's board (policy/board.py) with statistics that are asked for while requests arrive."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable

from engine.config import Config
from engine.errors import Unavailable
from engine.stats import ReplicaStats
from local.policies import routing_rules
from policy.board import Board

logger = logging.getLogger("ray.serve")
FRESH_SECONDS = 0.25  # age up to which statistics are not asked for again
OLD_SECONDS = 2.0  # age from which a request waits for new ones
WAIT_SECONDS = 1.0  # longest such wait


class LiveBoard(Board):
    """A Board that gets the statistics of all replicas from `ask`."""

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
        """Ask for new statistics if they are not fresh. Wait for them only if the known ones are old."""
        age = self._now() - self._asked_at
        if age > FRESH_SECONDS and (self._asking is None or self._asking.done()):
            # in an empty context, or Serve would cancel it together with the request that starts it
            self._asking = asyncio.get_running_loop().create_task(self._update(), context=contextvars.Context())
        if age > OLD_SECONDS and self._asking is not None:
            await asyncio.wait([self._asking], timeout=WAIT_SECONDS)

    async def _update(self) -> None:
        self._asked_at = self._now()
        then = self.sent()
        try:
            self.heard(await self._ask(), then)
        except (Unavailable, TimeoutError) as error:
            logger.info(f"replicas gave no new statistics, so requests are routed by the last ones: {error}")
