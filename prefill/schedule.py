"""Chunked prefill: which prompts get how many tokens of a step, by precedence, under one token budget.

A prompt starts once there is room for all of its pages and for those that running prompts still need. So a running
prompt always gets its pages, with two exceptions: window pages that others share come back late, and the outputs of
requests that decode over the same pages grow. Then the last request starts again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge

from torch import Tensor

from engine.batch import Row
from engine.pages import Pages, Precedence, Tables
from engine.stats import Counters
from engine.types import Request


@dataclass(eq=False)
class WaitingPrompt:
    """A request that has no pages. `started` is set if it has run before. Times are on the engine's clock."""

    request: Request
    arrived: float
    started: float | None = None

    @property
    def precedence(self) -> Precedence:
        return self.request.precedence(self.arrived)

    @property
    def deadline(self) -> float:
        return self.arrived + self.request.seconds_left


@dataclass(eq=False)
class Prompt:
    """A running prompt. The KV entries of its first `computed` tokens are in pages; `known` were there when it started.

    `started` is when it first ran; `drafter_row` is the drafter's state after the last computed token.
    """

    waiting: WaitingPrompt
    started: float
    tables: Tables
    computed: int
    known: int
    logprobs: list[float] = field(default_factory=list)
    drafter_row: Tensor | None = None

    @property
    def request(self) -> Request:
        return self.waiting.request

    @property
    def precedence(self) -> Precedence:
        return self.waiting.precedence

    @property
    def remaining(self) -> int:
        return self.request.num_tokens - self.computed


@dataclass(frozen=True)
class PromptChunk:
    """The next `num_tokens` of a prompt. It wants logits of its last token, or of all tokens for prompt_logprobs."""

    prompt: Prompt
    num_tokens: int

    @property
    def end(self) -> int:
        return self.prompt.computed + self.num_tokens

    @property
    def is_last(self) -> bool:
        return self.num_tokens == self.prompt.remaining

    @property
    def num_logits(self) -> int:
        return self.num_tokens if self.prompt.request.prompt_logprobs else 1

    @property
    def row(self) -> Row:
        prompt = self.prompt
        tokens = prompt.request.tokens[prompt.computed : self.end]
        return Row(tokens, prompt.computed, prompt.tables, self.num_logits)


class PromptSchedule:
    """Waiting and running prompts, each in the order of precedence.

    To start, a prompt needs room for `spare_tokens` more than its own. At most `max_requests` hold pages at once, those
    of other engines over the same pages included.
    """

    def __init__(
        self,
        pages: Pages,
        chunk_tokens: int,
        max_requests: int,
        counters: Counters,
        keeps_rows: bool,
        spare_tokens: int = 0,
    ) -> None:
        self._pages = pages
        self._spare_tokens = spare_tokens
        self._keeps_rows = keeps_rows
        self.chunk_tokens = chunk_tokens
        self.max_requests = max_requests
        self._counters = counters
        self.waiting: list[WaitingPrompt] = []
        self.running: list[Prompt] = []
        pages.queue.join(self)

    @property
    def holding(self) -> int:
        return len(self.running)

    @property
    def first_waiting(self) -> Precedence | None:
        return self.waiting[0].precedence if self.waiting else None

    @property
    def last_holding(self) -> Precedence | None:
        return self.running[-1].precedence if self.running else None

    def evict_last(self) -> None:
        """Let the last running prompt give back its pages and wait again."""
        prompt = self.running.pop()
        self._pages.release(prompt.tables)
        self.add(prompt.waiting)
        self._counters.preempted += 1

    def add(self, prompt: WaitingPrompt) -> None:
        insort(self.waiting, prompt, key=lambda p: p.precedence)

    def next(self, now: float) -> list[PromptChunk]:
        """Return the chunks of this step; their pages are taken."""
        chunks: list[PromptChunk] = []
        budget = self.chunk_tokens
        for prompt in self._candidates(now):
            chunk = PromptChunk(prompt, min(budget, prompt.remaining))
            if not self._take_pages(chunk):
                break
            chunks.append(chunk)
            budget -= chunk.num_tokens
            if budget == 0:
                break
        return chunks

    def queued_tokens(self) -> dict[int, int]:
        """Return the tokens that are not computed yet, by priority. Of a waiting prompt all tokens count: its cached
        prefix is only looked up when it starts."""
        queued: Counter[int] = Counter()
        for waiting in self.waiting:
            queued[waiting.request.priority] += waiting.request.num_tokens
        for prompt in self.running:
            queued[prompt.request.priority] += prompt.remaining
        return dict(queued)

    def remove(self, request_id: str) -> Request | None:
        """Take out a waiting or running prompt and give its pages back. Return its request, or None if unknown."""
        return next((self._take_out(w) for w in self._all() if w.request.id == request_id), None)

    def overdue(self, now: float) -> list[Request]:
        """Take out the prompts whose deadline has passed, give their pages back, and return their requests."""
        return [self._take_out(waiting) for waiting in self._all() if waiting.deadline <= now]

    def finish(self, prompt: Prompt) -> None:
        """Take out a running prompt, which keeps its pages."""
        self.running.remove(prompt)

    def _all(self) -> list[WaitingPrompt]:
        return [*self.waiting, *(prompt.waiting for prompt in self.running)]

    def _take_out(self, waiting: WaitingPrompt) -> Request:
        if waiting in self.waiting:
            self.waiting.remove(waiting)
        else:
            prompt = next(prompt for prompt in self.running if prompt.waiting is waiting)
            self.running.remove(prompt)
            self._pages.release(prompt.tables)
        return waiting.request

    def _candidates(self, now: float) -> Iterator[Prompt]:
        """Yield running prompts and, where their precedence says so, start waiting ones. The first that finds no room
        holds up the rest."""
        running, room = [prompt.waiting for prompt in self.running], True
        for candidate in merge(running, list(self.waiting), key=lambda p: p.precedence):
            if candidate in self.waiting:
                room = room and self._is_next(candidate) and self._start(candidate, now)
            yield from (prompt for prompt in list(self.running) if prompt.waiting is candidate)

    def _is_next(self, waiting: WaitingPrompt) -> bool:
        queue = self._pages.queue
        return queue.holding < self.max_requests and queue.is_next(waiting.precedence)

    def _start(self, waiting: WaitingPrompt, now: float) -> bool:
        """Start with the pages that are cached, if there is room for the rest."""
        tables, known = self._cached(waiting.request)
        needed = Counter(self._needed(waiting.request, tables))
        for other in self.running:
            needed.update(self._needed(other.request, other.tables))
        if not self._pages.has_room(needed):
            self._pages.release(tables)
            return False
        waiting.started = now if waiting.started is None else waiting.started
        prompt = Prompt(waiting, waiting.started, tables, computed=known, known=known)
        self.waiting.remove(waiting)
        insort(self.running, prompt, key=lambda p: p.precedence)
        self._counters.prompt_tokens += waiting.request.num_tokens
        self._counters.prefix_hit_tokens += known
        return True

    def _cached(self, request: Request) -> tuple[Tables, int]:
        """Return tables that begin with cached pages, and the number of tokens in them.

        At least one token is left to compute, as its logits are needed. A drafter that keeps rows needs the last cached
        token's row, which is not in its page: that token is computed again.
        """
        tables = self._pages.open(request.id, request.cache_salt)
        if request.prompt_logprobs:
            return tables, 0
        known = self._pages.reuse(tables, request.tokens)
        if known < request.num_tokens and not (known and self._keeps_rows):
            return tables, known
        if self._pages.own_last_page(tables):
            return tables, known - 1
        self._pages.release(tables)
        tables = self._pages.open(request.id, request.cache_salt)
        return tables, 0 if self._keeps_rows else self._pages.reuse(tables, request.tokens[:-1])

    def _needed(self, request: Request, tables: Tables) -> dict[str, int]:
        """Return the pages that a prompt may still take, those for its first generated tokens included."""
        num_tokens = min(request.num_tokens + self._spare_tokens, request.max_total_tokens)
        peak = self._pages.peak_pages(num_tokens, self.chunk_tokens)
        missing = self._pages.missing(tables, num_tokens)
        return {n: min(missing[n], peak[n] - len(table.page_ids)) for n, table in tables.groups.items()}

    def _take_pages(self, chunk: PromptChunk) -> bool:
        """Take the chunk's pages; while there are too few, evict the last request. Return False if that is this one,
        which keeps its pages and waits."""
        prompt = chunk.prompt
        self._pages.trim(prompt.tables, prompt.computed)
        while not self._pages.extend(prompt.tables, chunk.end):
            last = self._pages.queue.last()
            if last is self and self.running[-1] is prompt:
                return False
            last.evict_last()
        return True
