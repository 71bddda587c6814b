"""Assembles the engine of a replica from its parts.

Both worlds call `assemble`: the real one (local/build.py) with a model, a device's pages and a network, the virtual one
(compare/simulator/replica.py) with parts that take modelled time and compute nothing. Only their `Parts` differ.
"""

from dataclasses import dataclass, replace
from typing import overload

from decode.decoder import Decoder
from decode.pace import Pace
from decode.plan import planner_of
from decode.record import Recorder
from decode.step_runner import StepRunner
from engine.backend import Backend
from engine.clock import Clock
from engine.config import DecodeConfig, PrefillConfig
from engine.drafters import Drafter
from engine.local_transfer import LocalTransfer, LocalWire
from engine.pages import Pages
from engine.steptime import StepTimes
from engine.text import Text
from engine.transfer import Transfer
from local.colocated import ColocatedEngine
from prefill.prefiller import Prefiller


@dataclass(frozen=True, kw_only=True)
class PrefillParts:
    """The parts of a Prefiller."""

    pages: Pages
    backend: Backend
    drafter: Drafter
    transfer: Transfer
    clock: Clock
    poll_seconds: float
    fingerprint: dict[str, str]
    drafter_fingerprint: dict[str, str] | None = None
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DecodeParts(PrefillParts):
    """The parts of a Decoder, and with `backend` and `drafter` those of a Prefiller over the same pages."""

    step_runner: StepRunner
    step_times: StepTimes
    pace: Pace
    recorder: Recorder
    text: Text


@overload
def assemble(section: PrefillConfig, parts: PrefillParts) -> Prefiller: ...
@overload
def assemble(section: DecodeConfig, parts: DecodeParts) -> Decoder | ColocatedEngine: ...
def assemble(section: PrefillConfig | DecodeConfig, parts: PrefillParts) -> Prefiller | Decoder | ColocatedEngine:
    """Return the engine of a replica of the pool that `section` describes."""
    if isinstance(section, PrefillConfig):
        return _prefiller(section, parts)
    assert isinstance(parts, DecodeParts), "a decode pool needs DecodeParts"
    decoder = Decoder(
        pages=parts.pages,
        runner=parts.step_runner,
        planner=planner_of(section, parts.step_times, parts.step_runner.block_length),
        pace=parts.pace,
        recorder=parts.recorder,
        transfer=parts.transfer,
        clock=parts.clock,
        text=parts.text,
        config=section,
        poll_seconds=parts.poll_seconds,
        fingerprint=parts.fingerprint,
        drafter_fingerprint=parts.drafter_fingerprint,
        eos_token_ids=parts.eos_token_ids,
    )
    if not section.prefills:
        return decoder
    # Pages change hands inside the engine, so no peer ever connects to the prefiller's own transfer agent.
    alone = LocalTransfer(parts.transfer.entry.name, parts.pages.store, LocalWire())
    prefiller = _prefiller(
        local_prefill(section), replace(parts, transfer=alone), key="decode", spare_tokens=decoder.spare_tokens
    )
    return ColocatedEngine(parts.pages, prefiller, decoder)


def local_prefill(section: DecodeConfig) -> PrefillConfig:
    """Return the prefill configuration of a decode pool that prefills some prompts itself."""
    return PrefillConfig(
        chunk_tokens=section.local_chunk_tokens, max_requests=section.max_requests, max_waiting=section.max_waiting
    )


def max_step_tokens(section: PrefillConfig | DecodeConfig, block_length: int) -> int:
    """Return the most tokens of one request that a step of this pool computes. `block_length` is the drafter's."""
    if isinstance(section, PrefillConfig):
        return section.chunk_tokens
    return max(1 + block_length, section.local_chunk_tokens if section.prefills else 0)


def _prefiller(section: PrefillConfig, parts: PrefillParts, key: str = "prefill", spare_tokens: int = 0) -> Prefiller:
    return Prefiller(
        pages=parts.pages,
        backend=parts.backend,
        drafter=parts.drafter,
        transfer=parts.transfer,
        clock=parts.clock,
        config=section,
        poll_seconds=parts.poll_seconds,
        fingerprint=parts.fingerprint,
        drafter_fingerprint=parts.drafter_fingerprint,
        eos_token_ids=parts.eos_token_ids,
        section=key,
        spare_tokens=spare_tokens,
    )
