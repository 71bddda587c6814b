"""The real parts of a replica, from the configuration: model, pages, backend, drafter, transfer, clock and pace.

After this no code asks which of them it has. local/assemble.py puts engines together from them.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from decode.decoder import Decoder
from decode.pace import OwnPace
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
from engine.models import LoadedModel, load_model
from engine.pages import CacheLayout, Pages, PageStore
from engine.steptime import ProfiledTimes
from engine.text import Text
from engine.transfer import Transfer
from hardware.device import Device
from local.assemble import DecodeParts, PrefillParts, assemble, max_step_tokens
from local.colocated import ColocatedEngine
from local.emulate import Emulation
from local.page_budget import num_pages
from prefill.prefiller import Prefiller

MakeTransfer = Callable[[str, PageStore], Transfer]


class Builder:
    """Loads the model of `config` onto the device of one pool, and builds engines over it.

    In its methods `name` is the transfer agent's, and `pool` a decode pool, the default one if it is None.
    """

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
        """Return the facts of the model that clients may know."""
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

    @property
    def block_length(self) -> int:
        """Return the most drafts of a block; 0 without a drafter."""
        return self.drafter.block_length if self.drafter else 0

    @property
    def drafter_fingerprint(self) -> dict[str, str] | None:
        if self.drafter is None:
            return None
        return {**self.drafter.fingerprint, "layout": self.layout.fingerprint("drafter")}

    def prefiller(self, name: str, transfer: MakeTransfer, clock: Clock | None = None) -> Prefiller:
        """Return an engine of the prefill pool, with pages of its own."""
        section = self.config.prefill
        pages = self._pages(section)
        drafter = self._drafter(pages)
        parts = PrefillParts(
            pages=pages,
            backend=self._backend(pages, drafter),
            drafter=drafter,
            transfer=transfer(name, pages.store),
            clock=clock or MonotonicClock(),
            poll_seconds=self.config.transfer.poll_seconds,
            fingerprint=self.fingerprint,
            drafter_fingerprint=self.drafter_fingerprint,
            eos_token_ids=self.model.eos_token_ids,
        )
        return assemble(section, parts)

    def decode_engine(
        self, name: str, transfer: MakeTransfer, text: Text, pool: str | None = None, clock: Clock | None = None
    ) -> Decoder | ColocatedEngine:
        """Return the engine of a decode replica, with pages of its own."""
        pool = pool or self.config.default_pool
        section = self.config.decode[pool]
        return assemble(section, self._decode_parts(name, transfer, text, pool, section, clock or MonotonicClock()))

    def decoder(
        self, name: str, transfer: MakeTransfer, text: Text, clock: Clock | None = None, pool: str | None = None
    ) -> Decoder:
        """Return a decode engine that prefills nothing, even if the pool has `local_chunk_tokens`."""
        pool = pool or self.config.default_pool
        section = self.config.decode[pool].model_copy(update={"local_chunk_tokens": 0})
        parts = self._decode_parts(name, transfer, text, pool, section, clock or MonotonicClock())
        engine = assemble(section, parts)
        assert isinstance(engine, Decoder)
        return engine

    def step_times(self, section: DecodeConfig) -> ProfiledTimes:
        """Return the measured step times of a decode engine on this machine, as its planner gets them."""
        pages = self._pages(section)
        runner = self._step_runner(section, pages, MonotonicClock())
        return self._step_times(section, runner, pages, Text.load(self.config.model.path))

    def _decode_parts(
        self, name: str, make_transfer: MakeTransfer, text: Text, pool: str, section: DecodeConfig, clock: Clock
    ) -> DecodeParts:
        pages = self._pages(section)
        runner = self._step_runner(section, pages, clock)
        transfer = make_transfer(name, pages.store)
        emulation = Emulation.of(self.config, pool, self.block_length) if section.emulated else None
        return DecodeParts(
            pages=pages,
            backend=runner.backend,
            drafter=runner.drafter,
            transfer=emulation.paced(transfer, clock) if emulation else transfer,
            clock=clock,
            poll_seconds=self.config.transfer.poll_seconds,
            fingerprint=self.fingerprint,
            drafter_fingerprint=self.drafter_fingerprint,
            eos_token_ids=self.model.eos_token_ids,
            step_runner=runner,
            step_times=emulation.times if emulation else self._step_times(section, runner, pages, text),
            pace=emulation.pace(clock) if emulation else OwnPace(),
            recorder=self._recorder(section, pool, name, runner.acceptor),
            text=text,
        )

    def _pages(self, section: PrefillConfig | DecodeConfig) -> Pages:
        step_tokens = max_step_tokens(section, self.block_length)
        counts = num_pages(self.layout, section, self.model.device, step_tokens)
        return Pages(self.layout, PageStore(self.layout, counts, self.model.device), section.prefix_caching)

    def _drafter(self, pages: Pages) -> Drafter:
        return self.drafter.bind(pages.store) if self.drafter else NoDrafter()

    def _backend(self, pages: Pages, drafter: Drafter) -> TorchBackend:
        return TorchBackend(self.model.module, pages.store, drafter.tap_layers)

    def _step_runner(self, section: DecodeConfig, pages: Pages, clock: Clock) -> ModelStepRunner:
        drafter = self._drafter(pages)
        return ModelStepRunner(self._backend(pages, drafter), drafter, _acceptor(section), Stopwatch(clock))

    def _step_times(self, section: DecodeConfig, runner: ModelStepRunner, pages: Pages, text: Text) -> ProfiledTimes:
        key = self._step_times_key(section)
        measure = partial(profiled, runner, pages, text, self.model.config.vocab_size, section.max_requests, key)
        return kept(section.step_times, key, measure) if section.step_times else measure()

    def _step_times_key(self, section: DecodeConfig) -> dict[str, str]:
        """Return everything that step times depend on."""
        fingerprints = {"target": self.fingerprint, "drafter": self.drafter_fingerprint or {}}
        return {
            **{f"{part}.{name}": value for part, names in fingerprints.items() for name, value in names.items()},
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


def set_threads(section: EngineConfig, config: Config) -> None:
    """Set torch's thread count for this process: more threads than cores slow a step ten- to thirtyfold."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(section.threads or max(1, cores // config.max_replicas))


def _acceptor(section: DecodeConfig) -> Acceptor:
    return Exact() if section.synthetic_acceptance is None else Synthetic(section.synthetic_acceptance)


def _device(section: EngineConfig) -> torch.device:
    if isinstance(section, DecodeConfig) and section.emulated:
        Device.load(section.device)  # raises ConfigError for an unknown device
    try:
        device = section.torch_device
    except RuntimeError as error:
        raise ConfigError(f"device: {section.device!r} is no torch device ({error})") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {section.device} asked for, and torch sees no GPU")
    return device
