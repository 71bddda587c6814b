"""The edge where parts are chosen. After this nothing asks which backend, drafter, transfer or clock it has."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from decode.decoder import Decoder
from decode.pace import OwnPace
from decode.plan import planner_of
from decode.profile import kept, profiled
from decode.record import FileRecorder, Header, NoRecorder, Recorder
from decode.step_runner import ModelStepRunner
from decode.verify import Acceptor, Exact, Synthetic
from engine.backend import TorchBackend
from engine.clock import Clock, MonotonicClock, Stopwatch
from engine.config import Config, DecodeConfig, EngineConfig, PrefillConfig
from engine.device import device_name
from engine.drafters import Drafter, NoDrafter
from engine.drafters.load import load_drafter
from engine.errors import ConfigError
from engine.facts import ModelFacts
from engine.local_transfer import LocalTransfer, LocalWire
from engine.models import LoadedModel, load_model
from engine.models.preflight import free_memory, gib
from engine.pages import CacheLayout, Pages, PageStore
from engine.steptime import ProfiledTimes
from engine.text import Text
from engine.transfer import Transfer
from hardware.device import Device
from local.colocated import ColocatedEngine
from local.emulate import Emulation
from prefill.prefiller import Prefiller

MakeTransfer = Callable[[str, PageStore], Transfer]


class Builder:
    """Loads the model of `config` for one pool's device and builds engines over it."""

    def __init__(self, config: Config, section: EngineConfig, model: LoadedModel | None = None) -> None:
        self.config = config
        device = _device(section)
        self.model = model or load_model(config.model.path, config.model.torch_dtype, device)
        source, drafts = config.model.drafter, config.model.mtp_drafts
        self.drafter = load_drafter(source, self.model, drafts) if source is not None and section.drafting else None
        entries = [*self.model.entries, *(self.drafter.entries if self.drafter else ())]
        self.layout = CacheLayout.of(entries, config.model.page_tokens)
        self.fingerprint = {**self.model.fingerprint, "layout": self.layout.fingerprint("target")}

    @property
    def facts(self) -> ModelFacts:
        """What a caller may know of the model."""
        model = self.model
        return ModelFacts(
            name=self.config.model.served_name,
            architecture=model.architecture,
            vocab_size=model.config.vocab_size,
            max_tokens=model.config.max_position_embeddings,
            eos_token_ids=model.eos_token_ids,
            dtype=self.config.model.dtype,
            page_tokens=self.layout.page_tokens,
            page_bytes={name: group.page_bytes for name, group in self.layout.groups.items()},
            fingerprint=self.fingerprint,
            num_parameters=model.num_parameters,
            kernels=model.kernels,
        )

    def prefiller(self, name: str, transfer: MakeTransfer, clock: Clock | None = None) -> Prefiller:
        """A prefill engine with pages of its own. `name` is the transfer agent's."""
        pages = self._pages(self.config.prefill, step_tokens=self.config.prefill.chunk_tokens)
        drafter = self._drafter(pages)
        return Prefiller(
            pages=pages,
            backend=TorchBackend(self.model.module, pages.store, drafter.tap_layers),
            drafter=drafter,
            transfer=transfer(name, pages.store),
            clock=clock or MonotonicClock(),
            config=self.config.prefill,
            poll_seconds=self.config.transfer.poll_seconds,
            fingerprint=self.fingerprint,
            drafter_fingerprint=self.drafter_fingerprint,
            eos_token_ids=self.model.eos_token_ids,
        )

    def decoder(
        self, name: str, transfer: MakeTransfer, text: Text, clock: Clock | None = None, pool: str | None = None
    ) -> Decoder:
        """A decode engine of `pool` (or the default one) with pages of its own. `name` is the transfer agent's."""
        pool = pool or self.config.default_pool
        section = self.config.decode[pool]
        pages = self._pages(section, step_tokens=1 + self.block_length)
        clock = clock or MonotonicClock()
        return self._decoder(name, transfer, text, clock, pool, self._rounds(section, pages, clock), pages)

    def colocated(
        self, name: str, transfer: MakeTransfer, text: Text, clock: Clock | None = None, pool: str | None = None
    ) -> ColocatedEngine:
        """The same, with a prefill engine over its pages."""
        pool, clock = pool or self.config.default_pool, clock or MonotonicClock()
        section = self.config.decode[pool]
        pages = self._pages(section, step_tokens=max(1 + self.block_length, section.local_chunk_tokens))
        rounds = self._rounds(section, pages, clock)
        decoder = self._decoder(name, transfer, text, clock, pool, rounds, pages)
        prefiller = Prefiller(
            pages=pages,
            backend=rounds.backend,
            drafter=rounds.drafter,
            transfer=LocalTransfer(name, pages.store, LocalWire()),  # nobody reads what is here already
            clock=clock,
            config=PrefillConfig(
                chunk_tokens=section.local_chunk_tokens,
                max_requests=section.max_requests,
                max_waiting=section.max_waiting,
            ),
            poll_seconds=self.config.transfer.poll_seconds,
            fingerprint=self.fingerprint,
            drafter_fingerprint=self.drafter_fingerprint,
            eos_token_ids=self.model.eos_token_ids,
            section="decode",
            spare_tokens=decoder.spare_tokens,
        )
        return ColocatedEngine(pages, prefiller, decoder)

    def decode_engine(self, name: str, transfer: MakeTransfer, text: Text, pool: str) -> Decoder | ColocatedEngine:
        """What a replica of `pool` runs: it prefills, too, if `local_chunk_tokens` says so."""
        make = self.colocated if self.config.decode[pool].prefills else self.decoder
        return make(name, transfer, text, pool=pool)

    def _decoder(
        self,
        name: str,
        transfer: MakeTransfer,
        text: Text,
        clock: Clock,
        pool: str,
        rounds: ModelStepRunner,
        pages: Pages,
    ) -> Decoder:
        section = self.config.decode[pool]
        own = transfer(name, pages.store)
        emulation = Emulation.of(self.config, pool, self.block_length) if section.emulated else None
        times = emulation.times if emulation else self._step_times(section, rounds, pages, text)
        return Decoder(
            pages=pages,
            runner=rounds,
            planner=planner_of(section, times, self.block_length),
            pace=emulation.pace(clock) if emulation else OwnPace(),
            recorder=self._recorder(section, pool, name, rounds.acceptor),
            transfer=emulation.paced(own, clock) if emulation else own,
            clock=clock,
            text=text,
            config=section,
            poll_seconds=self.config.transfer.poll_seconds,
            fingerprint=self.fingerprint,
            drafter_fingerprint=self.drafter_fingerprint,
            eos_token_ids=self.model.eos_token_ids,
        )

    @property
    def block_length(self) -> int:
        """Drafts of a block."""
        return self.drafter.block_length if self.drafter else 0

    @property
    def drafter_fingerprint(self) -> dict[str, str] | None:
        if self.drafter is None:
            return None
        return {**self.drafter.fingerprint, "layout": self.layout.fingerprint("drafter")}

    def _drafter(self, pages: Pages) -> Drafter:
        return self.drafter.bind(pages.store) if self.drafter else NoDrafter()

    def _rounds(self, section: DecodeConfig, pages: Pages, clock: Clock) -> ModelStepRunner:
        drafter = self._drafter(pages)
        backend = TorchBackend(self.model.module, pages.store, drafter.tap_layers)
        return ModelStepRunner(backend, drafter, _acceptor(section), Stopwatch(clock))

    def step_times(self, section: DecodeConfig) -> ProfiledTimes:
        """What the steps of a decode engine cost here, as its planner knows it."""
        pages = self._pages(section, step_tokens=1 + self.block_length)
        rounds = self._rounds(section, pages, MonotonicClock())
        return self._step_times(section, rounds, pages, Text.load(self.config.model.path))

    def _step_times(self, section: DecodeConfig, rounds: ModelStepRunner, pages: Pages, text: Text) -> ProfiledTimes:
        key = self._times_key(section)
        measure = partial(profiled, rounds, pages, text, self.model.config.vocab_size, section.max_requests, key)
        return kept(section.step_times, key, measure) if section.step_times else measure()

    def _times_key(self, section: DecodeConfig) -> dict[str, str]:
        """What step times depend on."""
        parts = {"target": self.fingerprint, "drafter": self.drafter_fingerprint or {}}
        return {
            **{f"{part}.{name}": value for part, names in parts.items() for name, value in names.items()},
            "device": device_name(self.model.device),
            "dtype": self.config.model.dtype,
            "threads": str(torch.get_num_threads()),
            "block_length": str(self.block_length),
            "max_requests": str(section.max_requests),
            "torch": str(torch.__version__),
        }

    def _recorder(self, section: DecodeConfig, pool: str, agent: str, acceptor: Acceptor) -> Recorder:
        if section.record is None:
            return NoRecorder()
        header = Header(
            pool=pool,
            agent=agent,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device_name(self.model.device),
            threads=torch.get_num_threads(),
            planner=section.planner,
            block_length=self.block_length,
            synthetic=acceptor.synthetic,
            target=self.fingerprint,
            drafter=self.drafter_fingerprint,
            temperatures=list(self.drafter.temperatures) if self.drafter and self.drafter.temperatures else None,
        )
        try:
            return FileRecorder(section.record / f"{agent}.jsonl", header)
        except OSError as error:
            raise ConfigError(f"decode.{pool}.record: {error}") from None

    def _pages(self, section: EngineConfig, step_tokens: int) -> Pages:
        counts = num_pages(self.layout, section, self.model.device, step_tokens)
        return Pages(self.layout, PageStore(self.layout, counts, self.model.device), section.prefix_caching)


def _acceptor(section: DecodeConfig) -> Acceptor:
    return Exact() if section.synthetic_acceptance is None else Synthetic(section.synthetic_acceptance)


def num_pages(layout: CacheLayout, section: EngineConfig, device: torch.device, step_tokens: int) -> dict[str, int]:
    """How many pages of each group the section's bytes buy: the same number of tokens in every group, except that
    a window group never gets more than `max_requests` windows. Raises ConfigError if not even a few pages fit.
    """
    return page_counts(layout, section, page_budget(section, free_memory(device), str(device)), step_tokens)


def page_budget(section: EngineConfig, free: int, where: str) -> int:
    """Bytes for pages of `free` bytes. Raises ConfigError if the section asks for more."""
    budget = section.cache_bytes if section.cache_bytes is not None else int(free * section.cache_fraction)
    if budget > free:
        raise ConfigError(f"cache_bytes: {gib(budget)} of pages, {gib(free)} free on {where}")
    return budget


def page_counts(layout: CacheLayout, section: EngineConfig, budget: int, step_tokens: int) -> dict[str, int]:
    """The pages of each group that `budget` bytes buy. Raises ConfigError if not even a few pages fit."""
    counts: dict[str, int] = {}
    groups = sorted(layout.groups.values(), key=lambda g: g.window or 2**62)  # windows first: they leave the rest
    for i, group in enumerate(groups):
        affordable = budget // sum(g.page_bytes for g in groups[i:]) - 1  # one is the scratch page
        most = affordable
        if group.window is not None:
            most = section.max_requests * group.peak_pages(2**62, step_tokens)
        counts[group.name] = int(min(affordable, most))
        budget -= (counts[group.name] + 1) * group.page_bytes
    if min(counts.values()) < 2:
        raise ConfigError(f"cache_bytes: buys {counts} pages of {layout.page_tokens} tokens; 2 are the least")
    return counts


def set_threads(section: EngineConfig, config: Config) -> None:
    """Set torch's thread count for this process: more threads than cores slow a step ten- to thirtyfold."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(section.threads or max(1, cores // config.most_replicas))


def _device(section: EngineConfig) -> torch.device:
    """Where a pool's tokens are computed."""
    if isinstance(section, DecodeConfig) and section.emulated:
        Device.load(section.device)
    try:
        device = section.torch_device
    except RuntimeError as error:
        raise ConfigError(f"device: {section.device!r} is no torch device ({error})") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {section.device} asked for, and torch sees no GPU")
    return device
