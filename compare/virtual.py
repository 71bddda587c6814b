"""The world around an engine, without a model, a device or a wall clock: the doubles that a simulated replica gets.

The engines are the real ones. What they are given here computes nothing, holds no bytes, and takes the time that a
step-time model says.
"""

import heapq
import itertools
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import torch

from compare.simulator.acceptance import AcceptanceModel
from decode.batch import DecodeBatch
from engine.backend import Output
from engine.batch import Batch
from engine.clock import Stopwatch
from engine.drafters import DraftBlock
from engine.pages import CacheLayout
from engine.pages.layout import Entry
from engine.transfer import LeaseMessage, PageRead, ReadState
from engine.types import AgentEntry, SampledToken
from hardware.link import Link
from hardware.model import Model

CPU = torch.device("cpu")
VOCABULARY = 2  # logits that nobody looks at
TOKEN = 1


class Timeline:
    """What will happen, in the order of its time; of one moment, in the order in which it was said."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int]] = []
        self._happen: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()

    def at(self, moment: float, happen: Callable[[], None]) -> int:
        """A number to call it off by."""
        assert moment >= self.now, f"{moment} has passed, it is {self.now}"
        number = next(self._numbers)
        self._happen[number] = happen
        heapq.heappush(self._coming, (moment, number))
        return number

    def cancel(self, number: int) -> None:
        """It will not happen. What has happened stays."""
        self._happen.pop(number, None)

    def run(self) -> None:
        """Until nothing is to come."""
        while self._coming:
            moment, number = heapq.heappop(self._coming)
            happen = self._happen.pop(number, None)
            if happen is not None:
                self.now = moment
                happen()


class ReplicaClock:
    """One replica's: it runs ahead of the timeline while a step takes its time."""

    def __init__(self, moment: float) -> None:
        self._now = moment

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def set(self, moment: float) -> None:
        """The next step begins."""
        self._now = moment


class NoBytes:
    """Records that nobody reads."""

    def __getitem__(self, index: object) -> None:
        return None

    def __setitem__(self, index: object, value: object) -> None:
        pass


class NoStore:
    """A `PageStore` of pages that hold nothing."""

    def __init__(self, layout: CacheLayout, num_pages: dict[str, int]) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.device = CPU
        self.records: dict[str, Any] = {name: NoBytes() for name in layout.groups}


class NoText:
    """A tokenizer that says nothing."""

    def encode(self, text: str) -> tuple[int, ...]:
        return ()

    def decode(self, tokens: object) -> str:
        return ""


def layout_of(model: Model, page_tokens: int) -> CacheLayout:
    """Pages as large as the model's would be: one entry for all that grows, one for each window."""
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
        """A step of so many tokens of so many prompts, of which `context` on average are in pages already."""
        ...


class NoModel:
    """A `Backend` that takes its time."""

    def __init__(self, times: PrefillTimes, clock: ReplicaClock) -> None:
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
    """StepRunner (decode/step_runner.py) whose drafts survive as an acceptance model says. Time is the pace's matter.

    Each request's blocks are drawn from noise of its own, so what becomes of them does not depend on the batch.
    """

    synthetic = True

    def __init__(self, acceptance: AcceptanceModel | None, domain_of: Callable[[str], str], seed: int) -> None:
        self.computing = Stopwatch()
        self.block_length = acceptance.block_length if acceptance else 0
        self._acceptance = acceptance
        self._domain_of = domain_of
        self._seed = seed
        self._survives: list[int] = []

    def draft(self, batch: DecodeBatch, most: int) -> DraftBlock:
        if not most or self._acceptance is None:
            self._survives = [0] * len(batch)
            return DraftBlock.empty(len(batch))
        blocks = []
        for sequence in batch.sequences:
            draw = Random(f"{self._seed}/{sequence.id.partition('.')[0]}/{len(sequence.tokens)}")
            blocks.append(self._acceptance.block(self._domain_of(sequence.id), draw))
        self._survives = [block.survives for block in blocks]
        rows = [(*block.confidence, *[0.0] * self.block_length)[:most] for block in blocks]
        return DraftBlock(torch.full((len(batch), most), TOKEN), confidence_RK=torch.tensor(rows, dtype=torch.float32))

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        return [[SampledToken(TOKEN, 0.0)] * (1 + min(n, s)) for n, s in zip(lengths, self._survives, strict=True)]


class Wire:
    """Joins the transfers of a simulation, and says how long a message takes."""

    def __init__(self, message_seconds: float) -> None:
        self.message_seconds = message_seconds
        self.agents: dict[str, DrawnTransfer] = {}


class DrawnTransfer:
    """A `Transfer` whose reads take the time of a link; nothing is copied."""

    def __init__(self, name: str, layout: CacheLayout, wire: Wire, link: Link, clock: ReplicaClock) -> None:
        self.entry = AgentEntry(name=name, metadata=b"", regions={})
        self._layout = layout
        self._wire = wire
        self._link = link
        self._clock = clock
        self._arrives: dict[int, float] = {}
        self._numbers = itertools.count()
        self._inbox: list[tuple[float, str, LeaseMessage]] = []
        self.wake: Callable[[float], None] = lambda moment: None
        wire.agents[name] = self

    def connect(self, peer: AgentEntry) -> bool:
        return peer.name in self._wire.agents

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
        receiver, moment = self._wire.agents[peer], self._clock.now() + self._wire.message_seconds
        receiver._inbox.append((moment, self.entry.name, message))
        receiver.wake(moment)
        return True

    def notifications(self) -> list[tuple[str, LeaseMessage]]:
        now = self._clock.now()
        here = [(peer, message) for moment, peer, message in self._inbox if moment <= now]
        self._inbox = [one for one in self._inbox if one[0] > now]
        return here

    def drop(self, peer: str) -> None:
        pass

    def close(self) -> None:
        pass
