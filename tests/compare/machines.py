"""Made-up machines whose times can be reckoned, and systems of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compare.replica import SimulatedPool
from compare.simulator.acceptance import Rates
from compare.system import System
from compare.virtual import cache_layout
from engine.config import Config
from hardware.link import Link
from hardware.model import Model

FLASH = Model.of("deepseek-v4-flash")
LAYOUT = cache_layout(FLASH, 64)
FLASH_BYTES = LAYOUT.groups["full"].entries[0].row_bytes


@dataclass(frozen=True)
class Linear:
    """Seconds of a step, of each request, of each token and of each thousand tokens of context of each request."""

    step: float = 5e-3
    request: float = 2e-5
    token: float = 1e-5
    context: float = 1e-6
    draft: float = 1e-3

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self.step + requests * (self.request + self.context * context / 1000) + self.token * tokens

    def draft_seconds(self, requests: int, context: int) -> float:
        return self.draft

    def prefill_seconds(self, prompts: int, tokens: int, context: int) -> float:
        return self.verify_seconds(prompts, tokens, context)


@dataclass(frozen=True)
class Steady:
    """Every step takes as long."""

    seconds: float

    def verify_seconds(self, requests: int, tokens: int, context: int) -> float:
        return self.seconds

    def draft_seconds(self, requests: int, context: int) -> float:
        return 0.0

    def prefill_seconds(self, prompts: int, tokens: int, context: int) -> float:
        return self.seconds


GPU = Linear()


def simulated_pool(
    rates: tuple[float, ...] = (), link: Link | None = None, pages: int = 20_000, times: Any = GPU, **others: Any
) -> SimulatedPool:
    return SimulatedPool(
        layout=LAYOUT,
        num_pages=dict.fromkeys(LAYOUT.groups, pages),
        prefill_times=times,
        step_times=times,
        link=link or Link(50e9, 1e-4),
        acceptance=Rates.of(*rates) if rates else None,
        **others,
    )


def system(
    prefill: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
    simulated: SimulatedPool | Mapping[str, SimulatedPool] | None = None,
    pools: Mapping[str, Mapping[str, Any]] | None = None,
    rest: Mapping[str, Any] | None = None,
    **options: Any,
) -> System:
    """A service of one decode pool, or of `pools`; without local prefill unless it is asked for."""
    decode_pools = pools or {"default": decode or {}}
    config = Config.parse(
        {
            "prefill": {"chunk_tokens": 512, **(prefill or {})},
            "decode": {name: {"local_chunk_tokens": 0, **section} for name, section in decode_pools.items()},
            **(rest or {}),
        }
    )
    simulated = simulated or simulated_pool()
    if isinstance(simulated, SimulatedPool):
        simulated = dict.fromkeys(("prefill", *decode_pools), simulated)
    return System(config=config, pools=simulated, **options)
