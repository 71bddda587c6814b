"""Doubles of both pools: scripts of events instead of replicas."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from cluster.serving.pools import ReplicaStream
from engine.stats import Acceptance
from engine.types import (
    Chunk,
    DecodeTimings,
    Event,
    FinishReason,
    Handoff,
    PrefillTimings,
    Request,
    SampledToken,
)

Script = list[Event | Exception | float]  # a number waits that many seconds
NO_TIME = DecodeTimings(wait_seconds=0, transfer_seconds=0, decode_seconds=0, moved_bytes=0, moved_pages=0)


class ScriptedStream:
    """A replica's answer that follows a script, and waits for ever at its end if `open_ended`."""

    def __init__(self, script: Script, open_ended: bool = False) -> None:
        self._script = script
        self._open_ended = open_ended
        self.cancelled = False
        self.read_to_the_end = False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Event]:
        for step in self._script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, int | float):
                await asyncio.sleep(step)
            else:
                yield step
        self.read_to_the_end = True
        if self._open_ended:
            await asyncio.Event().wait()


class ScriptedPools:
    """Both pools. `decodes` has one script for each attempt; a prefill script may replace the usual handoff."""

    def __init__(self, decodes: list[Script], prefills: dict[int, Script] | None = None) -> None:
        self._decodes = decodes
        self._prefills = prefills or {}
        self.requests: list[Request] = []
        self.decoded: list[Request] = []
        self.streams: list[ScriptedStream] = []
        self.cancelled: list[str] = []
        self.preferred_replicas: list[tuple[str, ...]] = []

    def prefill(self, request: Request, preferred_replicas: Sequence[str]) -> ReplicaStream:
        self.preferred_replicas.append(tuple(preferred_replicas))
        attempt = len(self.requests)
        self.requests.append(request)
        return self._open(self._prefills.get(attempt, [handoff(request)]), open_ended=True)

    def decode(self, pool: str, request: Request, handoff: Handoff, preferred_replicas: Sequence[str]) -> ReplicaStream:
        self.preferred_replicas.append(tuple(preferred_replicas))
        self.decoded.append(request)
        return self._open(self._decodes[len(self.requests) - 1], open_ended=False)

    def serve(self, pool: str, request: Request, preferred_replicas: Sequence[str]) -> ReplicaStream:
        self.requests.append(request)
        self.preferred_replicas.append(tuple(preferred_replicas))
        return self._open([handoff(request), *self._decodes[len(self.requests) - 1]], open_ended=False)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def _open(self, script: Script, open_ended: bool) -> ReplicaStream:
        self.streams.append(ScriptedStream(script, open_ended))
        return ReplicaStream(self.streams[-1])


class Anywhere:
    """A router that admits every request and prefers no replica."""

    async def refresh(self) -> None:
        pass

    def admit(self, request: Request) -> None:
        pass

    def pool(self, request: Request, wished: str = "") -> str:
        return wished or "default"

    def local(self, pool: str, request: Request) -> Sequence[str]:
        return ()

    def handed_over(self, seconds: float) -> None:
        pass

    @contextlib.contextmanager
    def prefilling(self, request: Request) -> Iterator[Sequence[str]]:
        yield ()

    @contextlib.contextmanager
    def serving(self, preferred_replicas: Sequence[str], request: Request) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def decoding(self, pool: str, request: Request) -> Iterator[Sequence[str]]:
        yield ()


def handoff(request: Request) -> Handoff:
    return Handoff(
        request_id=request.id,
        nonce="n",
        num_tokens=request.num_tokens,
        first=SampledToken(1, 0.0),
        spans={},
        agents=(),
        target_fingerprint={},
        drafter_fingerprint=None,
        lease_seconds=30.0,
        timings=PrefillTimings(queue_seconds=0.0, prefill_seconds=0.0),
    )


def chunk(*tokens: int, finish: FinishReason | None = None) -> Chunk:
    text = "".join(f"<{token}>" for token in tokens)
    account = {"timings": NO_TIME, "acceptance": Acceptance()} if finish else {}
    logprobs = (0.0,) * len(tokens)
    return Chunk(request_id="any", tokens=tokens, logprobs=logprobs, text=text, finish=finish, **account)
