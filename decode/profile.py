"""Measuring what a decode step costs on this machine, once at start: drafting, and all that follows it."""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engine.backend import Backend
from engine.batch import Batch, Row
from engine.drafters import Anchor, Drafter
from engine.pages import Pages, Tables
from engine.steptime import Curve, ProfiledTimes
from engine.types import Sampling

logger = logging.getLogger("sparkpool")
REPEATS = 3
CONTEXT_PAGES = 2


def kept(folder: Path, key: dict[str, str], measure: Callable[[], ProfiledTimes]) -> ProfiledTimes:
    """The folder's table for `key`. If there is none, or none that can be read, it is measured and left there."""
    file = folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    try:
        times = ProfiledTimes.load(file, key)
    except (OSError, ValueError) as error:
        logger.warning(f"step times are measured again: {error}")
        times = None
    if times is not None:
        logger.info(f"step times are those of {file}")
        return times
    times = measure()
    try:
        times.save(file)
    except OSError as error:
        logger.warning(f"step times are not kept for the next start (decode.POOL.step_times): {error}")
    return times


def profiled(pages: Pages, backend: Backend, drafter: Drafter, max_requests: int, key: dict[str, str]) -> ProfiledTimes:
    """Medians of a few steps for 1, 2, 4, ... requests, each verifying none, half and all of a block.

    Requests stand after a context of CONTEXT_PAGES pages, or fewer if the replica has too few for all of them. `key`
    says what was measured.
    """
    context = CONTEXT_PAGES * pages.layout.page_tokens
    tables = list(_opened(pages, max_requests, context + 1 + drafter.block_length))
    assert tables, "not even one request fits"
    counts = sorted({min(2**n, len(tables)) for n in range(len(tables).bit_length() + 1)})
    anchors = [Anchor(0, context, t, Sampling()) for t in tables]
    draft, verify = [], {}
    for count in counts:
        draft.append(_median(partial(drafter.propose, anchors[:count], drafter.block_length)))
        lengths = sorted({0, drafter.block_length // 2, drafter.block_length})
        steps = [_median(partial(_verify, pages, backend, drafter, anchors[:count], length)) for length in lengths]
        verify[count] = Curve.fitted([count * (1 + length) for length in lengths], steps)
    for one in tables:
        pages.release(one)
    return ProfiledTimes(key, context, Curve.fitted(counts, draft), verify)


def _opened(pages: Pages, most: int, num_tokens: int) -> Iterator[Tables]:
    for n in range(most):
        tables = pages.open(f"profile-{n}")
        if not pages.extend(tables, num_tokens):
            return
        yield tables


def _verify(pages: Pages, backend: Backend, drafter: Drafter, anchors: list[Anchor], drafts: int) -> None:
    rows = [Row((0,) * (1 + drafts), a.position, a.tables, 1 + drafts) for a in anchors]
    batch = Batch.of(rows, pages.layout, pages.store.device)
    output = backend.forward(batch)
    tokens = output.logits.argmax(dim=-1)
    drafter.absorb(batch, output.taps, [a.row for a in anchors], batch.logits_index[drafts :: 1 + drafts])
    tokens.tolist()


def _median(step: Callable[[], object]) -> float:
    """Seconds of a step, after one that warms up."""
    step()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
