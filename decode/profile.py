"""The measurement of decode step times on this machine, once at start: drafting and verifying."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from decode.batch import DecodeBatch
from decode.sequence import dummy_sequences
from decode.step_runner import ModelStepRunner
from engine.pages import Pages
from engine.steptime import Curve, ProfiledTimes
from engine.text import Text
from engine.types import Sampling

logger = logging.getLogger("sparkpool")
REPEATS = 5
CONTEXT_PAGES = 2


def kept(folder: Path, key: dict[str, str], measure: Callable[[], ProfiledTimes]) -> ProfiledTimes:
    """Load the folder's table for `key`; if there is none, or it cannot be read, measure and save it."""
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


def profiled(
    runner: ModelStepRunner, pages: Pages, text: Text, vocab_size: int, max_requests: int, key: dict[str, str]
) -> ProfiledTimes:
    """Measure steps of 1, 2, 4, ... requests, each verifying none, half and all of a block.

    Each request has a context of CONTEXT_PAGES pages; there are fewer requests if the replica has too few pages. `key`
    identifies what was measured.
    """
    length = runner.drafter.block_length
    context = CONTEXT_PAGES * pages.layout.page_tokens
    sequences = tuple(dummy_sequences(pages, text, context, 1 + length, max_requests, Sampling(), vocab_size))
    assert sequences, "not even one request fits"
    counts = sorted({min(2**n, len(sequences)) for n in range(len(sequences).bit_length() + 1)})
    draft, verify = [], {}
    for count in counts:
        batch = DecodeBatch(sequences[:count], pages, ())
        draft.append(_fastest(partial(runner.draft, batch, length)))
        block = runner.draft(batch, length)
        lengths = sorted({0, length // 2, length})
        seconds = [_fastest(partial(runner.verify, batch, block, [n] * count)) for n in lengths]
        verify[count] = Curve.fitted([count * (1 + n) for n in lengths], seconds)
    for sequence in sequences:
        pages.release(sequence.tables)
    return ProfiledTimes(key, context, Curve.fitted(counts, draft), verify)


def _fastest(step: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few steps, after a warm-up: other work on the machine only adds time."""
    step()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
