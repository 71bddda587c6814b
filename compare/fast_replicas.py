"""Replicas of the fast simulator: whole steps at once, over arrays of requests."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compare.simulator.acceptance import AcceptanceModel
from compare.simulator.workload import Arrival
from compare.virtual import PrefillTimes
from engine.facts import Survival, expected_rate
from engine.steptime import StepTimes
from hardware.link import Link

CONTEXT_STEP = 256  # contexts that differ by less take the same time
GRAIN_BITS = 6  # numbers of requests are looked up with so many leading bits


@dataclass(frozen=True, kw_only=True)
class Prefilling:
    """The prefill pool: its replicas, the times of their steps, tokens of a step, and tokens of prompts that a replica
    remembers."""

    replicas: int
    times: PrefillTimes
    chunk_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A decode pool: its replicas, the times of their steps, seats and tokens of cache in each, the link that pages
    come over, bytes of a token there, and drafts. `fixed`: drafts verified of each request; None: as many as pay."""

    replicas: int
    times: StepTimes
    max_requests: int
    cache_tokens: int
    link: Link
    token_bytes: float
    acceptance: AcceptanceModel | None = None
    fixed: int | None = None


class PrefillReplica:
    """Prompts in the order of arrival, so many tokens in a step."""

    def __init__(self, pool: Prefilling) -> None:
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
        """Tokens of its beginning that are here; the last token is always computed. Whoever asks sends it here."""
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
        """Seconds of the next step, and the prompts that are whole after it."""
        budget, prompts, tokens, before, done = self._pool.chunk_tokens, 0, 0, 0.0, []
        for entry in self.queue:
            part = min(budget - tokens, entry[1])
            prompts, tokens, before = prompts + 1, tokens + int(part), before + part * entry[2]
            entry[1] -= part
            entry[2] += part
            if not entry[1]:
                done.append(int(entry[0]))
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


class Plans:
    """Of a pool: how many drafts of each request are verified, and the seconds of such a step. Looked up for some
    numbers of requests, straight lines between; contexts that differ by less than CONTEXT_STEP are one."""

    def __init__(self, pool: Decoding) -> None:
        self._pool = pool
        self._survival = Survival(pool.acceptance.survival("") if pool.acceptance else ())
        self._known: dict[tuple[int, int], tuple[int, float]] = {}

    def of(self, count: int, context: int) -> tuple[int, float]:
        """For so many requests with so many tokens each."""
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
class Entry:
    """A handoff: the request, tokens in its pages, tokens to come; and when its prefill replica can answer."""

    index: int
    context: int
    left: int
    answering: Callable[[], float]


class DecodeReplica:
    """Requests as arrays; those that have ended leave holes that the last ones fill."""

    def __init__(self, pool: Decoding, plans: Plans, random: np.random.Generator, answer_seconds: float = 0.0) -> None:
        """`answer_seconds`: until the answer to a release is here, if prefill is not in a step."""
        self._pool = pool
        self._plans = plans
        self._random = random
        size = pool.max_requests
        self.request = np.zeros(size, dtype=np.int64)
        self.left = np.zeros(size, dtype=np.int64)
        self.count = 0
        self.context = 0  # tokens in cache, of all
        self.promised = 0  # tokens that requests here will have in cache, at most
        self.waiting: deque[Entry] = deque()
        self.reading: list[tuple[float, Entry]] = []  # until then
        self.releasing: list[tuple[float, Entry]] = []  # until then
        self.coming = 0  # handoffs under way
        self.answer_seconds = answer_seconds
        self.news: list[int] = []  # whose first token waits for the next step
        self.link = Link(pool.link.bandwidth, pool.link.latency)
        self.stepping = False
        self.busy_seconds = 0.0
        self.steps = self.tokens = self.drafted = self.verified = self.accepted = 0
        survival = pool.acceptance.survival("") if pool.acceptance else ()
        # one uniform number says how many drafts in a row survive: as many as there are survivals above it
        self._chances = np.array(survival[::-1])

    @property
    def load(self) -> int:
        return self.holding + len(self.waiting) + self.coming

    @property
    def holding(self) -> int:
        return self.count + len(self.reading) + len(self.releasing)

    def turn(self, now: float) -> None:
        """What decode/inbox.py does once between two steps: whose release was answered joins, who has been read
        releases, and reads begin, in order, while there are seats and all that a request will be fits."""
        still = []
        for moment, entry in self.releasing:
            if moment <= now:
                self._join(entry)
            else:
                still.append((moment, entry))
        self.releasing, reading = still, []
        for moment, entry in self.reading:
            if moment <= now:
                self.releasing.append((max(now, entry.answering()) + self.answer_seconds, entry))
            else:
                reading.append((moment, entry))
        self.reading = reading
        while self.waiting and self.holding < self._pool.max_requests:
            entry = self.waiting[0]
            if self.promised and self.promised + entry.context + entry.left > self._pool.cache_tokens:
                break
            self.waiting.popleft()
            self.promised += entry.context + entry.left
            self.reading.append((self.link.arrives(now, entry.context * self._pool.token_bytes), entry))

    @property
    def next_turn(self) -> float:
        """When there will be something to do if no step runs; infinite if never."""
        return min((moment for moment, _ in (*self.reading, *self.releasing)), default=math.inf)

    def _join(self, entry: Entry) -> None:
        self.request[self.count], self.left[self.count] = entry.index, entry.left
        self.count += 1
        self.context += entry.context

    def step(self) -> tuple[float, np.ndarray]:
        """Seconds of the next step, and the places of requests that end with it; `leave` takes them out."""
        count = self.count
        drafts, seconds = self._plans.of(count, self.context // count)
        left = self.left[:count]
        if drafts:
            drawn = len(self._chances) - np.searchsorted(self._chances, self._random.random(count), side="right")
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

    def leave(self, places: np.ndarray, context_of: Mapping[int, int]) -> list[int]:
        """The requests at these places, whose seats are free now; `context_of`: tokens that each had at its end."""
        gone: list[int] = self.request[places].tolist()
        for place in places[::-1].tolist():
            self.count -= 1
            self.request[place], self.left[place] = self.request[self.count], self.left[self.count]
        for request in gone:
            self.context -= context_of[request]
            self.promised -= context_of[request]
        return gone
