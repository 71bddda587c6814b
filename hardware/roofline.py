"""The time of a step from operations and bytes: the roofline of a device, its losses, and a latency for each layer.

A step is counted layer by layer, attention and feed-forward apart: each takes whichever is longer, its operations at
the device's arithmetic or its bytes at the memory's bandwidth. To that come messages between the units, and for each
layer a time that does not depend on work: launches and synchronisation. Without it GPUs look ten times too good at
batch 1 (eight B200 could read V4-Flash's active weights in 0.17 ms; the best published step takes 1.9).
"""

import math
from dataclasses import dataclass

from hardware.attention import WIDTH, Attention
from hardware.device import Numbers
from hardware.model import STORED, FeedForward, Model
from hardware.placement import Placement

DISPATCHED, COMBINED = WIDTH["fp8"], WIDTH["bf16"]  # bytes of an element on its way to an expert, and back


@dataclass(frozen=True)
class Losses:
    """The shares of a data sheet's arithmetic, memory and network figures that a real step gets, and the seconds of
    each layer and of each step that depend on no work. `source` says where these numbers come from: a fit
    (hardware/fit.py), or "none" for bounds that no system reaches."""

    compute: float = 1.0
    memory: float = 1.0
    network: float = 1.0
    layer_seconds: float = 0.0
    step_seconds: float = 0.0
    source: str = "none: what the data sheet allows at best"


@dataclass(frozen=True)
class Work:
    """The work of one step: `requests` of `context` tokens each, and `tokens` new ones in total."""

    requests: float
    tokens: float
    context: int

    @property
    def queries(self) -> float:
        """New tokens of each request."""
        return self.tokens / self.requests

    def part(self, parts: int) -> "Work":
        """One of so many equal parts; a request cannot be cut, so the fullest of them."""
        requests = max(1.0, math.ceil(self.requests / parts))
        return Work(requests, requests * self.queries, self.context)


@dataclass(frozen=True)
class DraftShape:
    """A drafter as work: `passes` of `layers` one after the other, each over `tokens_each` tokens of a request."""

    layers: int
    passes: int
    tokens_each: int
    feed_forward: FeedForward
    attention: Attention
    markov_rank: int = 0

    @classmethod
    def mtp(cls, model: Model, drafts: int) -> "DraftShape":
        """The model's own next-token layer, once for each draft."""
        last = model.layers[-1]
        return cls(1, drafts, 1, last.feed_forward, last.attention)

    @classmethod
    def dspark(cls, model: Model, drafts: int, layers: int, markov_rank: int = 256) -> "DraftShape":
        """A parallel block: one pass over the whole block, then the Markov head along it (DSpark paper)."""
        last = model.layers[-1]
        return cls(layers, 1, 1 + drafts, last.feed_forward, last.attention, markov_rank)


@dataclass(frozen=True)
class Roofline:
    """Step times (engine/steptime.py: StepTimes) of a model on a replica of a device's units."""

    model: Model
    numbers: Numbers
    placement: Placement
    losses: Losses
    drafter: DraftShape | None = None

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        """A step of the target. Over several stages each has a part of the requests; all pass through all."""
        stages = self.placement.stages
        work = Work(requests, tokens, context).part(stages)
        seconds = sum(n * self.attention_seconds(kind, work) for kind, n in self.model.attentions.items())
        seconds += sum(n * self.feed_forward_seconds(kind, work) for kind, n in self.model.feed_forwards.items())
        passing = (stages - 1) * self.message_seconds(work.tokens * self.model.hidden * COMBINED) if stages > 1 else 0.0
        return seconds + self.head_seconds(work.tokens) + passing + self.losses.step_seconds

    def draft_seconds(self, requests: int, context: int) -> float:
        """0 without a drafter."""
        drafter = self.drafter
        if drafter is None:
            return 0.0
        work = Work(requests, requests * drafter.tokens_each, context)
        layer = self.attention_seconds(drafter.attention, work)
        layer += self.feed_forward_seconds(drafter.feed_forward, work)
        one = drafter.layers * layer + self.head_seconds(work.tokens)
        if drafter.markov_rank:
            one += work.queries * self._seconds(
                2.0 * requests * drafter.markov_rank * self.model.vocab, drafter.markov_rank * self.model.vocab * 2.0
            )
        return drafter.passes * one + self.losses.step_seconds * (drafter.passes > 0)

    def prefill_seconds(self, prompts: int, tokens: int, context: int) -> float:
        """A step of prefill: so many tokens of so many prompts, of which `context` on average are in pages already."""
        return self.verify_seconds(prompts, tokens, context)

    def attention_seconds(self, kind: Attention, work: Work) -> float:
        """One layer's: its matrices, the cache, and for cut heads the sum over units."""
        placement, stored = self.placement, self.model.dense
        own = work.part(placement.units) if placement.attention == "data" else work
        cut = 1 if placement.attention == "data" else placement.units
        operations = own.tokens * (2.0 * kind.parameters + kind.operations(work.context)) / cut
        cache = own.requests * kind.read_bytes(work.context, math.ceil(work.queries))
        cache *= 1.0 if placement.attention == "data" else placement.share_of_cache(kind.shards)
        seconds = self._seconds(operations, kind.parameters * STORED[stored] / cut + cache)
        sums = {"data": 0, "tensor": 1, "context": 2}[placement.attention]
        return seconds + sums * self._summed_seconds(work.tokens) + self.losses.layer_seconds / 2

    def feed_forward_seconds(self, kind: FeedForward, work: Work) -> float:
        """One layer's: what every token uses, its experts, and the way there and back."""
        units, model = self.placement.units, self.model
        operations = 2.0 * work.tokens * (kind.common + kind.chosen * kind.expert) / units
        experts = kind.touched(work.tokens) / units * kind.expert * STORED[model.routed]
        if kind.experts and self.placement.attention == "data":  # shared experts lie where attention does
            common = kind.common * STORED[model.dense]
        else:
            common = kind.common * STORED[model.dense] / units
        seconds = self._seconds(operations, experts + common, model.routed if kind.experts else model.dense)
        if kind.experts:
            seconds += self._exchanged_seconds(work, kind.chosen)
        else:
            seconds += self._summed_seconds(work.tokens if units > 1 else 0.0)
        return seconds + self.losses.layer_seconds / 2

    def head_seconds(self, tokens: float) -> float:
        head, units = self.model.head, self.placement.units
        return self._seconds(2.0 * tokens * head / units, head * max(2.0, STORED[self.model.dense]) / units)

    def message_seconds(self, size: float) -> float:
        """A message of so many bytes to another unit: of the domain, or of the world where there is none."""
        link = "scale_up" if self.numbers.has("scale_up") else "scale_out"
        bandwidth = self.numbers.get(link) * self.losses.network
        return size / bandwidth + (self.numbers.get("hop") if self.numbers.has("hop") else 0.0)

    def _exchanged_seconds(self, work: Work, chosen: int) -> float:
        """Tokens to the units of their experts and back; a unit that has several of them gets a token once."""
        units = self.placement.units
        if units == 1:
            return 0.0
        elsewhere = (units - 1) * (1 - (1 - 1 / units) ** chosen)  # units that a token goes to, in the mean
        size = work.tokens / units * elsewhere * self.model.hidden
        return self.message_seconds(size * DISPATCHED) + self.message_seconds(size * COMBINED)

    def _summed_seconds(self, tokens: float) -> float:
        """The sum of all units' parts of so many tokens, at every unit: scattered, then gathered."""
        units = self.placement.units
        if units == 1 or not tokens:
            return 0.0
        return 2 * self.message_seconds((units - 1) / units * tokens * self.model.hidden * COMBINED)

    def _seconds(self, operations: float, size: float, precision: str | None = None) -> float:
        """Return the seconds of one unit."""
        stored = precision or self.model.dense
        arithmetic = self.numbers.device.arithmetic("bf16" if stored == "fp32" else stored)
        compute = operations / (self.numbers.get(arithmetic) * self.losses.compute)
        return max(compute, size / (self.numbers.get("bandwidth") * self.losses.memory))
