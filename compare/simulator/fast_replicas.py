"""Replicas of the fast simulator: each computes a whole step at once, over arrays of requests."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compare.simulator.acceptance import AcceptanceModel
from compare.simulator.virtual import PrefillTimes
from compare.simulator.workload import Arrival
from engine.facts import Survival, expected_rate
from engine.steptime import StepTimes
from hardware.link import Link

CONTEXT_STEP = 256  # tokens; step times are computed once for all contexts in such a range
GRAIN_BITS = 6  # step times are computed for numbers of requests with this many leading bits


@dataclass(frozen=True, kw_only=True)
class FastPrefillPool:
    """The prefill pool. `chunk_tokens`: the token budget of a step; `cached_tokens`: tokens of earlier prompts that a
    replica keeps."""

    replicas: int
    times: PrefillTimes
    chunk_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class FastDecodePool:
    """The decode pool. `cache_tokens`: tokens that the pages of a replica hold; `token_bytes`: bytes of a token on the
    link; `fixed`: drafts of each request that are verified (None: the number with the highest throughput)."""

    replicas: int
    times: StepTimes
    max_requests: int
    cache_tokens: int
    link: Link
    token_bytes: float
    acceptance: AcceptanceModel | None = None
    fixed: int | None = None


class FastPrefillReplica:
    """Computes prompts in the order of arrival, at most `chunk_tokens` tokens in a step."""

    def __init__(self, pool: FastPrefillPool) -> None:
        self._pool = pool
        self._seconds: dict[tuple[int, int], float] = {}
        self._known: dict[str, int] = {}
        self._known_tokens = 0
        self.queue: deque[list[float]] = deque()  # [request, tokens left, tokens before them]
        self.queued_tokens = 0.0
        self.busy_seconds = 0.0
        self.steps = self.tokens = 0
        self.stepping = False
        self.free_at = 0.0

    def cached(self, arrival: Arrival) -> int:
        """Return how many leading tokens of a new request are cached, and cache what it shares with others. The last
        token of a prompt is always computed."""
        if not arrival.shared or not self._pool.cached_tokens:
            return 0
        found, whole = 0, True
        for segment in arrival.shared:
            known = self._known.pop(segment.name, 0)
            if whole:
                found += min(known, segment.tokens)
            whole = whole and known >= segment.tokens
            self._known[segment.name] = max(known, segment.tokens)
            self._known_tokens += self._known[segment.name] - known
        while self._known_tokens > self._pool.cached_tokens and self._known:
            oldest = next(iter(self._known))
            self._known_tokens -= self._known.pop(oldest)
        return min(found, arrival.input_tokens - 1)

    def add(self, request: int, arrival: Arrival, cached: int) -> None:
        self.queue.append([request, arrival.input_tokens - cached, cached])
        self.queued_tokens += arrival.input_tokens - cached

    def step(self) -> tuple[float, list[int]]:
        """Return the seconds of the next step, and the requests whose prompts it completes."""
        budget, prompts, tokens, before, done = self._pool.chunk_tokens, 0, 0, 0.0, []
        for prompt in self.queue:
            part = min(budget - tokens, prompt[1])
            prompts, tokens, before = prompts + 1, tokens + int(part), before + part * prompt[2]
            prompt[1] -= part
            prompt[2] += part
            if not prompt[1]:
                done.append(int(prompt[0]))
            if tokens == budget:
                break
        for _ in done:
            self.queue.popleft()
        seconds = self._pool.times.prefill_seconds(prompts, tokens, int(before) // tokens)
        self.queued_tokens -= tokens
        self.busy_seconds += seconds
        self.steps += 1
        self.tokens += tokens
        return seconds, done


class DecodeStepTable:
    """A table of the drafts that a pool verifies of each request, and the seconds of such a step. It is computed for
    some numbers of requests and interpolated between them; contexts in one CONTEXT_STEP share an entry."""

    def __init__(self, pool: FastDecodePool) -> None:
        self._pool = pool
        self._survival = Survival(pool.acceptance.survival("") if pool.acceptance else ())
        self._known: dict[tuple[int, int], tuple[int, float]] = {}

    def of(self, count: int, context: int) -> tuple[int, float]:
        """Return drafts and seconds for `count` requests with `context` tokens each."""
        coarse = 1 << max(0, count.bit_length() - GRAIN_BITS)
        low = count // coarse * coarse
        drafts, seconds = self._at(low, context // CONTEXT_STEP)
        if low == count:
            return drafts, seconds
        _, more = self._at(low + coarse, context // CONTEXT_STEP)
        return drafts, seconds + (more - seconds) * (count - low) / coarse

    def _at(self, count: int, context: int) -> tuple[int, float]:
        key = (count, context)
        if key not in self._known:
            times, tokens = self._pool.times, context * CONTEXT_STEP + CONTEXT_STEP // 2
            drafts = expected_rate(times, self._survival, count, tokens, drafts=self._pool.fixed).drafts
            seconds = times.verify_seconds(count, count * (1 + drafts), tokens)
            seconds += times.draft_seconds(count, tokens) if drafts else 0.0
            self._known[key] = drafts, seconds
        return self._known[key]


@dataclass(frozen=True)
class WaitingHandoff:
    """A handoff to a decode replica: the request, tokens in its pages, and tokens still to be generated.
    `prefill_free_at` gives the moment at which its prefill replica ends its current step and can answer."""

    request: int
    context: int
    left: int
    prefill_free_at: Callable[[], float]


class FastDecodeReplica:
    """Keeps its requests in arrays; the last ones move to the positions of those that have ended."""

    def __init__(
        self, pool: FastDecodePool, steps: DecodeStepTable, random: np.random.Generator, release_seconds: float = 0.0
    ) -> None:
        """`release_seconds`: from the release of a handoff to its answer, if the prefill replica is not in a step."""
        self._pool = pool
        self._step_table = steps
        self._random = random
        size = pool.max_requests
        self.request = np.zeros(size, dtype=np.int64)
        self.left = np.zeros(size, dtype=np.int64)
        self.count = 0
        self.context = 0  # tokens of all requests in pages
        self.promised = 0  # tokens that the requests here will have in pages at their ends
        self.waiting: deque[WaitingHandoff] = deque()
        self.reading: list[tuple[float, WaitingHandoff]] = []  # with the moment at which the read ends
        self.releasing: list[tuple[float, WaitingHandoff]] = []  # with the moment of the answer
        self.coming = 0  # handoffs that are on their way here
        self.release_seconds = release_seconds
        self.first_tokens: list[int] = []  # requests whose first token is sent with the next step
        self.link = Link(pool.link.bandwidth, pool.link.latency)
        self.stepping = False
        self.busy_seconds = 0.0
        self.steps = self.tokens = self.drafted = self.verified = self.accepted = 0
        survival = pool.acceptance.survival("") if pool.acceptance else ()
        # A uniform random number gives the drafts that survive in a row: as many as there are survival rates above it.
        self._survival = np.array(survival[::-1])

    @property
    def load(self) -> int:
        return self.holding + len(self.waiting) + self.coming

    @property
    def holding(self) -> int:
        return self.count + len(self.reading) + len(self.releasing)

    def turn(self, now: float) -> None:
        """Do what decode/inbox.py does between two steps: let requests whose release was answered join, release those
        that have been read, and begin reads in order while there is room for a request and its whole length."""
        still = []
        for moment, handoff in self.releasing:
            if moment <= now:
                self._join(handoff)
            else:
                still.append((moment, handoff))
        self.releasing, reading = still, []
        for moment, handoff in self.reading:
            if moment <= now:
                self.releasing.append((max(now, handoff.prefill_free_at()) + self.release_seconds, handoff))
            else:
                reading.append((moment, handoff))
        self.reading = reading
        while self.waiting and self.holding < self._pool.max_requests:
            handoff = self.waiting[0]
            if self.promised and self.promised + handoff.context + handoff.left > self._pool.cache_tokens:
                break
            self.waiting.popleft()
            self.promised += handoff.context + handoff.left
            self.reading.append((self.link.arrives(now, handoff.context * self._pool.token_bytes), handoff))

    @property
    def next_turn(self) -> float:
        """Return when the next read or release ends; infinite without any."""
        return min((moment for moment, _ in (*self.reading, *self.releasing)), default=math.inf)

    def _join(self, handoff: WaitingHandoff) -> None:
        self.request[self.count], self.left[self.count] = handoff.request, handoff.left
        self.count += 1
        self.context += handoff.context

    def step(self) -> tuple[float, np.ndarray]:
        """Return the seconds of the next step, and the positions of the requests that end with it, for `leave`."""
        count = self.count
        drafts, seconds = self._step_table.of(count, self.context // count)
        left = self.left[:count]
        if drafts:
            drawn = len(self._survival) - np.searchsorted(self._survival, self._random.random(count), side="right")
            gained = np.minimum(drawn, drafts) + 1
            self.accepted += int(gained.sum()) - count
            np.minimum(gained, left, out=gained)
            left -= gained
            total = int(gained.sum())
        else:
            left -= 1
            total = count
        self.context += total
        self.tokens += total
        self.steps += 1
        self.drafted += drafts * count
        self.verified += drafts * count
        self.busy_seconds += seconds
        return seconds, np.flatnonzero(left == 0)

    def leave(self, positions: np.ndarray, context_of: Mapping[int, int]) -> list[int]:
        """Remove the requests at these positions and return them. `context_of`: tokens that each has at its end."""
        gone: list[int] = self.request[positions].tolist()
        for position in positions[::-1].tolist():
            self.count -= 1
            self.request[position], self.left[position] = self.request[self.count], self.left[self.count]
        for request in gone:
            self.context -= context_of[request]
            self.promised -= context_of[request]
        return gone
