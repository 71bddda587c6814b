"""A pair of engines on a clock that the test moves, and the few things a scenario does with it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine.clock import ManualClock
from engine.config import Config
from engine.models import LoadedModel
from engine.types import Chunk, Ended, Event, Request, Sampling, StopRules
from local import Builder, Pair

MIB = 2**20
POLL_SECONDS = 0.001


def config(path: Path, prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None) -> Config:
    return Config.parse(
        {
            "model": {"path": path},
            "prefill": {"cache_bytes": 2 * MIB, "chunk_tokens": 64, **(prefill or {})},
            "decode": {"default": {"cache_bytes": 2 * MIB, **(decode or {})}},
        }
    )


def prompt(name: str, tokens: int) -> tuple[int, ...]:
    """Another one for each name."""
    return tuple((sum(map(ord, name)) + 37 * i + i * i) % 256 for i in range(tokens))


def request(name: str = "r", tokens: int = 10, max_tokens: int = 5) -> Request:
    """A prompt of that many tokens. Only `max_tokens` ends it."""
    stop = StopRules(max_tokens=max_tokens, ignore_eos=True)
    return Request(id=name, prompt=prompt(name, tokens), sampling=Sampling(), stop=stop)


class Rig(Pair):
    """`Pair`, with time and the wire in the test's hand."""

    clock: ManualClock

    def __init__(self, path: Path, model: LoadedModel, **sections: dict[str, Any]) -> None:
        settings = config(path, **sections)
        super().__init__(settings, ManualClock(100.0), Builder(settings, settings.prefill, model))
        self.events: list[Event] = []

    def step(self) -> list[Event]:
        """One step of each engine; then a little time passes, as it does."""
        events = super().step()
        self.events += events
        self.clock.advance(POLL_SECONDS)
        return events

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            self.step()
        raise AssertionError("the pair never got there")

    def wait(self, seconds: float, tick: float = 1.0) -> None:
        """Let time pass, stepping all the while."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.clock.advance(min(tick, end - self.clock.now()))
            self.step()

    def run(self) -> None:
        self.until(lambda: self.idle)
        self.assert_consistent()

    def phases(self) -> dict[str, str]:
        """Where each handoff that came is, by request."""
        return {i.sequence.id: str(i.phase) for i in self.decoder._inbox._incoming.values()}

    def tokens(self, name: str) -> list[int]:
        return [token for chunk in self.chunks[name] for token in chunk.tokens]

    def finish(self, name: str) -> str | None:
        reasons = [chunk.finish for chunk in self.chunks[name] if chunk.finish]
        assert len(reasons) <= 1, "a request has one end"
        return reasons[0] if reasons else None

    def lost(self) -> Iterator[str]:
        """Requests that ended with an error, in order."""
        return (e.request_id for e in self.events if isinstance(e, Ended) and e.error is not None)

    @property
    def leases(self) -> int:
        return self.prefiller.stats().leases.held

    def cut_prefill(self) -> None:
        """The prefill replica's agent dies: no read from it, no word to it."""
        self.wire.cut(self.prefiller.stats().identity.agent)

    def decoding(self, name: str) -> bool:
        return name in self.decoder._schedule.running

    def first_chunk(self, name: str) -> Chunk:
        return self.chunks[name][0]


@contextlib.contextmanager
def poison(model: torch.nn.Module, token: int) -> Iterator[None]:
    """The model gives NaN from `token` on, while the block runs."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    before = weight[token].clone()
    weight[token] = float("nan")
    yield
    weight[token] = before
