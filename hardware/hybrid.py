"""Two devices that make one step: attention here and feed-forward there, or drafts there and the target here."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from engine.errors import ConfigError
from engine.steptime import StepTimes
from hardware.device import Numbers
from hardware.model import Layer
from hardware.roofline import COMBINED, DISPATCHED, Roofline, Work


@dataclass(frozen=True)
class Bridge:
    """Between two devices of different kinds: seconds of a message, and bytes per second one way."""

    seconds: float
    bandwidth: float

    @classmethod
    def of(cls, numbers: Numbers, units: int) -> "Bridge":
        """Return the bridge of a device that has one (LPX), with that many units."""
        return cls(numbers.get("bridge"), numbers.get("scale_out") * units)

    def message_seconds(self, size: float) -> float:
        return self.seconds + size / self.bandwidth


@dataclass(frozen=True)
class Hybrid:
    """Attention-FFN disaggregation (StepTimes): `attention` keeps the cache and the head, `feed_forward` the experts.

    In every layer activations cross to the experts and back. The batch is cut into micro-batches, so that one is on its
    way while others are computed: with m of them a layer takes as long as the busiest side needs for all, or as one
    needs for its round, whichever is longer: max(m a, m f, a + f + 2 hops). The best m up to `micro_batches` is taken.
    """

    attention: Roofline
    feed_forward: Roofline
    bridge: Bridge
    micro_batches: int = 4

    def __post_init__(self) -> None:
        if self.attention.model != self.feed_forward.model:
            here, there = self.attention.model.name, self.feed_forward.model.name
            raise ConfigError(f"attention of {here} and feed-forward of {there} are no model")
        if self.micro_batches < 1:
            raise ConfigError(f"{self.micro_batches} micro-batches are none")

    @cached_property
    def _layers(self) -> dict[Layer, int]:
        return dict(Counter(self.attention.model.layers))

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        limit = min(self.micro_batches, requests)
        layers = min(self._layers_seconds(Work(requests, tokens, context), m) for m in range(1, limit + 1))
        return layers + self.attention.head_seconds(tokens) + self.attention.losses.step_seconds

    def draft_seconds(self, requests: int, context: int) -> float:
        """Drafts are made where attention is."""
        return self.attention.draft_seconds(requests, context)

    def _layers_seconds(self, work: Work, micro_batches: int) -> float:
        one = work.part(micro_batches)
        hidden = one.tokens * self.attention.model.hidden
        hops = self.bridge.message_seconds(hidden * DISPATCHED) + self.bridge.message_seconds(hidden * COMBINED)
        seconds = 0.0
        for layer, count in self._layers.items():
            here = self.attention.attention_seconds(layer.attention, one)
            there = self.feed_forward.feed_forward_seconds(layer.feed_forward, one)
            seconds += count * max(micro_batches * here, micro_batches * there, here + there + hops)
        return seconds


@dataclass(frozen=True)
class ExternalDrafter:
    """Drafts on one device, the target on another (StepTimes): Nvidia's first mode for LPX beside Rubin. Of each
    request the taps of its new tokens cross over, and its drafts come back."""

    target: StepTimes
    drafter: StepTimes
    bridge: Bridge
    tap_bytes: float
    """Of each request: hidden states that the drafter needs."""

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self.target.verify_seconds(requests, tokens, context)

    def draft_seconds(self, requests: int, context: int) -> float:
        there = self.bridge.message_seconds(requests * self.tap_bytes)
        return there + self.drafter.draft_seconds(requests, context) + self.bridge.message_seconds(requests * 64.0)


def ceiling(layers: int, hop_seconds: float) -> float:
    """Tokens per second of one request if nothing took time but two hops in each layer."""
    return 1 / (2 * layers * hop_seconds) if hop_seconds else math.inf
