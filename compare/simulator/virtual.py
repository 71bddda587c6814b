"""The virtual world around an engine: parts without a model, a device or a wall clock, which a simulated replica gets.

The engines are the real ones. What they are given here computes nothing, holds no bytes, and takes the time that a
step-time model says.
"""

import heapq
import itertools
from collections.abc import Callable
from random import Random
from typing import Protocol

import torch

from compare.simulator.acceptance import AcceptanceModel
from decode.batch import DecodeBatch
from engine.backend import Output
from engine.batch import Batch
from engine.clock import Stopwatch
from engine.drafters import DraftBlock
from engine.pages import CacheLayout, PageStore
from engine.pages.layout import Entry
from engine.text import Text
from engine.transfer import LeaseMessage, PageRead, ReadState
from engine.types import AgentEntry, SampledToken
from hardware.link import Link
from hardware.model import Model

VOCABULARY = 2  # the fewest tokens that can be sampled from
TOKEN = 1  # the token that every simulated step gives


class Timeline:
    """The calls to come, in the order of their time; those of one moment in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int]] = []
        self._calls: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()

    def at(self, moment: float, call: Callable[[], None]) -> int:
        """Add a call; returns a number to cancel it by."""
        assert moment >= self.now, f"{moment} has passed, it is {self.now}"
        number = next(self._numbers)
        self._calls[number] = call
        heapq.heappush(self._coming, (moment, number))
        return number

    def cancel(self, number: int) -> None:
        """Cancel a call. One that has been made stays."""
        self._calls.pop(number, None)

    def run(self) -> None:
        """Make all calls, and those that they add."""
        while self._coming:
            moment, number = heapq.heappop(self._coming)
            call = self._calls.pop(number, None)
            if call is not None:
                self.now = moment
                call()


class VirtualClock:
    """The clock of one replica: it runs ahead of the timeline while a step takes its time."""

    def __init__(self, moment: float) -> None:
        self._now = moment

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def set(self, moment: float) -> None:
        """Go to the moment at which the next step begins."""
        self._now = moment


class EmptyPageStore(PageStore):
    """A PageStore whose records have shapes and no bytes. Batches are still built on the CPU."""

    def __init__(self, layout: CacheLayout, num_pages: dict[str, int]) -> None:
        super().__init__(layout, num_pages, torch.device("meta"))
        self.device = torch.device("cpu")


class EmptyText(Text):
    """A tokenizer whose tokens have no text."""

    def __init__(self) -> None: ...

    def encode(self, text: str) -> tuple[int, ...]:
        return ()

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        return ""


def cache_layout(model: Model, page_tokens: int) -> CacheLayout:
    """Return pages as large as the model's would be: one entry for all that grows, one for each window."""
    sizes: dict[int | None, float] = {}
    for layer in model.layers:
        for entry in layer.attention.cache:
            if entry.group != "compressor":
                sizes[entry.window] = sizes.get(entry.window, 0.0) + entry.size / entry.tokens
    entries = [
        Entry(layer=n, name="all", shape=(max(1, round(size)),), dtype=torch.uint8, window=window)
        for n, (window, size) in enumerate(sizes.items())
    ]
    return CacheLayout.of(entries, page_tokens)


class PrefillTimes(Protocol):
    def prefill_seconds(self, prompts: int, tokens: int, context: int) -> float:
        """Return the seconds of a step that computes `tokens` tokens of `prompts` prompts, of each of which `context`
        tokens on average are in pages already."""
        ...


class SimulatedBackend:
    """A Backend that takes the time of a prefill step and computes nothing."""

    def __init__(self, times: PrefillTimes, clock: VirtualClock) -> None:
        self._times = times
        self._clock = clock

    def forward(self, batch: Batch) -> Output:
        rows = len(batch.logits_index)
        tokens, positions = len(batch.token_ids_T), batch.positions_T
        context = int(positions.sum()) // tokens - tokens // (2 * rows)
        self._clock.advance(self._times.prefill_seconds(rows, tokens, max(0, context)))
        logits = torch.zeros(rows, VOCABULARY)
        logits[:, TOKEN] = 1.0
        return Output(logits, {})


class SimulatedStepRunner:
    """A StepRunner (decode/step_runner.py) whose drafts are accepted as an acceptance model says; it takes no time,
    which is the pace's to do.

    Each request's blocks are drawn from noise of its own, so their acceptance does not depend on the batch.
    """

    synthetic = True

    def __init__(self, acceptance: AcceptanceModel | None, domain_of: Callable[[str], str], seed: int) -> None:
        """`domain_of` gives the domain of a request's id."""
        self.computing = Stopwatch()
        self.block_length = acceptance.block_length if acceptance else 0
        self._acceptance = acceptance
        self._domain_of = domain_of
        self._seed = seed
        self._survives: list[int] = []

    def draft(self, batch: DecodeBatch, max_drafts: int) -> DraftBlock:
        if not max_drafts or self._acceptance is None:
            self._survives = [0] * len(batch)
            return DraftBlock.empty(len(batch))
        blocks = []
        for sequence in batch.sequences:
            draw = Random(f"{self._seed}/{sequence.id.partition('.')[0]}/{len(sequence.tokens)}")
            blocks.append(self._acceptance.block(self._domain_of(sequence.id), draw))
        self._survives = [block.survives for block in blocks]
        rows = [(*block.confidence, *[0.0] * self.block_length)[:max_drafts] for block in blocks]
        return DraftBlock(
            torch.full((len(batch), max_drafts), TOKEN), confidence_RK=torch.tensor(rows, dtype=torch.float32)
        )

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        return [[SampledToken(TOKEN, 0.0)] * (1 + min(n, s)) for n, s in zip(lengths, self._survives, strict=True)]


class SimulatedNetwork:
    """Joins the transfers of a simulation. A message takes `message_seconds`."""

    def __init__(self, message_seconds: float) -> None:
        self.message_seconds = message_seconds
        self.agents: dict[str, SimulatedTransfer] = {}


class SimulatedTransfer:
    """A Transfer whose reads take the time of a link; nothing is copied."""

    def __init__(
        self,
        name: str,
        network: SimulatedNetwork,
        link: Link,
        clock: VirtualClock,
        wake: Callable[[float], None],
    ) -> None:
        """`wake` makes this agent's engine look for messages at a moment."""
        self.entry = AgentEntry(name=name, metadata=b"", regions={})
        self._network = network
        self._link = link
        self._clock = clock
        self._wake = wake
        self._arrives: dict[int, float] = {}
        self._numbers = itertools.count()
        self._inbox: list[tuple[float, str, LeaseMessage]] = []
        network.agents[name] = self

    def connect(self, peer: AgentEntry) -> bool:
        return peer.name in self._network.agents

    def read(self, peer: AgentEntry, reads: list[PageRead]) -> int:
        number = next(self._numbers)
        size = sum(read.total_bytes for read in reads)
        self._arrives[number] = self._link.arrives(self._clock.now(), size)
        return number

    def poll(self, read: int) -> ReadState:
        if self._arrives[read] > self._clock.now():
            return ReadState.RUNNING
        del self._arrives[read]
        return ReadState.DONE

    def notify(self, peer: str, message: LeaseMessage) -> bool:
        receiver, moment = self._network.agents[peer], self._clock.now() + self._network.message_seconds
        receiver._inbox.append((moment, self.entry.name, message))
        receiver._wake(moment)
        return True

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        now = self._clock.now()
        here = [(peer, message) for moment, peer, message in self._inbox if moment <= now]
        self._inbox = [one for one in self._inbox if one[0] > now]
        return here

    def drop(self, peer: str) -> None: ...

    def close(self) -> None: ...
