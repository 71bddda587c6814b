"""Measures handoffs between two processes over NIXL: bandwidth compared with a raw read, and control path.

Two tables. *Reads* moves pages of two sizes with `NixlTransfer` alone: adjacent pages (one descriptor) and pages in
random order (one descriptor each), compared with NIXL's read of one contiguous block of the same size. *Handoffs* is
the whole path: a prefill engine in one process, a decode engine in the other, from a fresh page pool, whose pages are
adjacent, and from a fragmented one, where every second page is taken. On one host UCX uses shared memory, cross-memory
attach or loopback TCP: a network has other figures, and on a busy machine they show the CPU scheduler.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.ceiling import MachineRates
from bench.console import TableRow
from bench.peers import GROUP, Block, BlockEntry, Peer, WatchedTransfer, digest, mark, page_store
from bench.shape import BenchReport, Samples
from decode import Decoder
from engine.clock import MonotonicClock
from engine.config import SHIPPED_MODEL, Config
from engine.pages import PageStore
from engine.text import Text
from engine.transfer import NixlTransfer, PageRead, ReadState, new_agent_name
from engine.types import AgentEntry, Chunk, Handoff, Request, RequestEnded, Sampling, StopRules
from local.build import Builder, set_threads
from tests.checkpoints import DEEPSEEK_V3, save_random

Side = Callable[[int], float]
PAGE_BYTES = {"tiny-mla, float32": 5 * 64 * 80 * 4, "DeepSeek-V3, bfloat16": 61 * 64 * 576 * 2}
PAGE_COUNTS = (1, 8, 64, 256)
MOST_BYTES = 2**29
HANDOFF_PAGES = 64
ROUNDS = 9
ANSWER_TOKENS = 2  # the first comes with the pages, the second shows when they were admitted


def run(report: BenchReport) -> None:
    quick, threads = report.options.quick, report.options.threads
    rates = MachineRates.measured(replace(report.options, device=torch.device("cpu")))
    report.ceiling("copy in memory, GB/s moved", rates.copy_bytes_per_second / 2e9)
    with TemporaryDirectory() as folder:
        path = save_random(DEEPSEEK_V3, Path(folder)) if quick else SHIPPED_MODEL
        engine = {"cache_bytes": "64MiB", "threads": threads, "prefix_caching": False}  # pages used are free again
        prefill = {**engine, "lease_seconds": 3600.0}
        config = Config.parse({"model": {"path": path}, "prefill": prefill, "decode": {"default": engine}})
        with Peer(config) as peer:
            sizes = {"small": 4096} if quick else PAGE_BYTES
            counts = (1, 4) if quick else PAGE_COUNTS
            rows = [row for name, size in sizes.items() for row in _reads(report, peer, name, size, counts)]
            report.table("reads", rows)
            _handoffs(report, peer, config, num_pages=4 if quick else HANDOFF_PAGES)


def _rounds(report: BenchReport) -> range:
    return range(2 if report.options.quick else 1 + ROUNDS)


def _reads(report: BenchReport, peer: Peer, name: str, page_bytes: int, counts: tuple[int, ...]) -> Iterator[TableRow]:
    """Yield a row for each number of pages of one size."""
    counts = tuple(count for count in counts if count * page_bytes <= MOST_BYTES)
    entry, block_entry = peer.ask("hold", page_bytes, max(counts))
    store = page_store(page_bytes, max(counts))
    transfer = NixlTransfer(new_agent_name("reader"), store)
    block = Block(block_entry.num_bytes)
    for count in counts:
        adjacent = tuple(range(1, count + 1))
        scattered = tuple(random.Random(count).sample(adjacent, count))
        num_bytes = count * page_bytes
        sides = {
            "adjacent": partial(_read_seconds, transfer, entry, store, adjacent),
            "scattered": partial(_read_seconds, transfer, entry, store, scattered),
            "raw": partial(_raw_seconds, block, block_entry, num_bytes),
        }
        samples = report.alternately(f"{count} pages of {name}", sides, _rounds(report))
        rates = {f"{side}_gb_s": num_bytes / samples.median(side) / 1e9 for side in sides}
        over = {f"{side}_over_raw": samples.speed_up(side, "raw") for side in ("adjacent", "scattered")}
        yield {"page": name, "page_bytes": page_bytes, "pages": count, **rates, **over}
    transfer.close()
    block.close()


def _raw_seconds(block: Block, peer: BlockEntry, num_bytes: int, _: int) -> float:
    return block.read(peer, num_bytes)


def _read_seconds(transfer: NixlTransfer, peer: AgentEntry, store: PageStore, pages: tuple[int, ...], _: int) -> float:
    """Read pages of the peer into local pages of the same ids, and check their content."""
    records = store.records[GROUP]
    for page in pages:
        records[page] = 0
    part = PageRead(group=GROUP, remote_pages=pages, local_pages=pages, num_bytes=records.shape[1])
    started = time.perf_counter()
    number = transfer.read(peer, [part])
    while (state := transfer.poll(number)) == ReadState.RUNNING:
        pass
    seconds = time.perf_counter() - started
    assert state == ReadState.DONE
    assert all((records[page] == mark(page)).all() for page in pages), "the bytes read differ from the peer's"
    return seconds


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """One handoff: seconds from the end of prefill until decode admitted it, and how its pages were read."""

    admitted_seconds: float
    read_seconds: float
    num_bytes: int
    num_descriptors: int


class DecodeSide:
    """A decode engine in this process, connected over NIXL to the prefill engine of `peer`."""

    def __init__(self, config: Config, peer: Peer) -> None:
        set_threads(config.prefill, config)
        builder = Builder(config, config.decode[config.default_pool])
        self._transfers: list[WatchedTransfer] = []
        self._engine: Decoder = builder.decoder(new_agent_name("decode"), self._join, Text.load(config.model.path))
        self._engine.warm_up()
        self._vocab = builder.facts.vocab_size
        self.page_bytes = sum(group.target_bytes for group in builder.layout.groups.values())
        self._page_tokens = builder.facts.page_tokens
        self._peer = peer
        self._clock = MonotonicClock()
        self._rng = random.Random(1)
        self._asked = 0

    def fragment(self, num_holes: int) -> list[str]:
        """Leave every second page of the prefill side free; return the requests that hold the pages between."""
        handoffs = [self._prefilled(num_tokens=1)[1] for _ in range(2 * num_holes)]
        for handoff in handoffs[::2]:
            self._peer.tell("cancel", handoff.request_id)
        return [handoff.request_id for handoff in handoffs[1::2]]

    def cancel(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._peer.tell("cancel", request_id)

    def take(self, num_pages: int, patient: bool) -> Arrived:
        """Run one handoff of `num_pages` pages to its end. If `patient`, sleep between steps, as a replica does;
        otherwise step without a pause, to see when the read completed, and compare the bytes."""
        request, handoff, done = self._prefilled(num_pages * self._page_tokens)
        assert handoff.num_pages == num_pages
        theirs = None
        if not patient:
            theirs = self._peer.ask("digest", {group: span.page_ids for group, span in handoff.spans.items()})
        self._engine.add(request, handoff)
        last = self._last_chunk(patient)
        assert last.timings is not None and last.finish is not None
        record = self._transfers[0].records[-1]
        if theirs is not None:
            assert digest(self._transfers[0].store, record.pages) == theirs, "the bytes read differ from those offered"
        assert last.timings.moved_bytes == num_pages * self.page_bytes
        return Arrived(
            admitted_seconds=self._clock.now() - last.timings.decode_seconds - done,
            read_seconds=record.seconds,
            num_bytes=last.timings.moved_bytes,
            num_descriptors=record.num_descriptors,
        )

    def close(self) -> None:
        self._transfers[0].close()

    def _join(self, name: str, store: PageStore) -> WatchedTransfer:
        self._transfers.append(WatchedTransfer(name, store))
        return self._transfers[-1]

    def _prefilled(self, num_tokens: int) -> tuple[Request, Handoff, float]:
        """Prefill a new random prompt; return its request, its handoff, and when prefill ended."""
        prompt = tuple(self._rng.randrange(self._vocab) for _ in range(num_tokens))
        stop = StopRules(max_tokens=ANSWER_TOKENS, ignore_eos=True)
        request = Request(id=str(self._asked), prompt=prompt, sampling=Sampling(), stop=stop)
        self._asked += 1
        handoff, done = self._peer.ask("add", request)
        return request, handoff, done

    def _last_chunk(self, patient: bool) -> Chunk:
        while True:
            for event in self._engine.step():
                assert not isinstance(event, RequestEnded), event.error
                if isinstance(event, Chunk) and event.finish is not None:
                    return event
            deadline = self._engine.next_deadline()
            if patient and deadline is not None:
                time.sleep(max(0.0, deadline - self._clock.now()))


def _handoffs(report: BenchReport, peer: Peer, config: Config, num_pages: int) -> None:
    side = DecodeSide(config, peer)
    num_bytes = num_pages * side.page_bytes
    _, block_entry = peer.ask("hold", side.page_bytes, num_pages)
    block = Block(num_bytes)
    rows = []
    for pool in ("fresh", "fragmented"):
        taken = side.fragment(num_pages) if pool == "fragmented" else []
        arrived: list[Arrived] = []

        def handed_over(_: int, arrived: list[Arrived] = arrived) -> float:
            arrived.append(side.take(num_pages, patient=False))
            return arrived[-1].read_seconds

        def raw(_: int) -> float:
            peer.ask("rewrite")  # neither side has a handoff's bytes in its caches, so neither may have these
            return block.read(block_entry, num_bytes, cold=True)

        sides: dict[str, Side] = {"handoff": handed_over, "raw": raw}
        samples = report.alternately(f"{num_pages} pages from a {pool} pool", sides, _rounds(report))
        rows.append(_row(pool, num_pages, arrived[-1], samples))
        side.cancel(taken)
    control = [side.take(num_pages, patient=True).admitted_seconds for _ in _rounds(report)][1:]
    one_page = [side.take(1, patient=True).admitted_seconds for _ in _rounds(report)][1:]
    side.close()
    block.close()
    report.table("handoffs", rows)
    less_read = [seconds - samples.median("raw") for seconds in control]
    p50 = statistics.median(less_read) * 1e3
    table = [
        {"handoff": f"{num_pages} pages, less the raw read", "p50": p50, "worst": max(less_read) * 1e3},
        {
            "handoff": "1 page, its read included",
            "p50": statistics.median(one_page) * 1e3,
            "worst": max(one_page) * 1e3,
        },
    ]
    report.table("control path: ms from prefill done to decode admitted", table)
    for row in rows:
        what = f"bandwidth of {num_pages} pages from a {row['pool']} pool over one raw block"
        report.goal(what, row["over_raw"], 0.7, "x")
    report.goal(f"control path of {num_pages} pages at p50", p50, 10.0, "ms", at_most=True)


def _row(pool: str, num_pages: int, arrived: Arrived, samples: Samples) -> TableRow:
    return {
        "pool": pool,
        "pages": num_pages,
        "bytes": arrived.num_bytes,
        "descriptors": arrived.num_descriptors,
        "handoff_gb_s": arrived.num_bytes / samples.median("handoff") / 1e9,
        "raw_gb_s": arrived.num_bytes / samples.median("raw") / 1e9,
        "over_raw": samples.speed_up("handoff", "raw"),
    }
