"""Which prompts get how many tokens of a step: by precedence, under one token budget.

A prompt runs once there is room for all its pages, those of running prompts counted before; so a prompt that runs
gets its pages, except that window pages which others share come back late, and that answers which run over the same
pages grow: then the last in line starts again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge

from torch import Tensor

from engine.batch import Row
from engine.facts import Counters
from engine.pages import Pages, Precedence, Tables
from engine.types import Request


@dataclass(eq=False)
class Prompt:
    """A request on its way through the model. Its first `computed` tokens are in pages, `known` were there before.
    `drafter_hidden` is what the drafter keeps of the last of them."""

    request: Request
    arrived: float
    computed: int = 0
    known: int = 0
    started: float | None = None
    tables: Tables | None = None
    logprobs: list[float] = field(default_factory=list)
    drafter_hidden: Tensor | None = None

    @property
    def remaining(self) -> int:
        return self.request.num_tokens - self.computed

    @property
    def precedence(self) -> Precedence:
        return self.request.precedence(self.arrived)

    @property
    def deadline(self) -> float:
        return self.arrived + self.request.seconds_left


@dataclass(frozen=True)
class PromptChunk:
    """What one prompt puts into this step. Its last token's logits are wanted, or those of all for prompt_logprobs."""

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
        assert prompt.tables is not None
        tokens = prompt.request.tokens[prompt.computed : self.end]
        return Row(tokens, prompt.computed, prompt.tables, self.num_logits)


class PromptSchedule:
    """Prompts that wait and prompts that run, each in the order of precedence. To start, a prompt needs room for
    `spare_tokens` more than its own. No more than `max_requests` hold pages at once, those of other tenants counted."""

    def __init__(
        self,
        pages: Pages,
        chunk_tokens: int,
        max_requests: int,
        counters: Counters,
        keeps_hidden: bool,
        spare_tokens: int = 0,
    ) -> None:
        self._pages = pages
        self._spare_tokens = spare_tokens
        self._keeps_rows = keeps_hidden
        self.chunk_tokens = chunk_tokens
        self.max_requests = max_requests
        self._counters = counters
        self.waiting: list[Prompt] = []
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
        """The last in line starts again later."""
        self._restart(self.running[-1])

    def add(self, prompt: Prompt) -> None:
        insort(self.waiting, prompt, key=lambda p: p.precedence)

    def next(self, now: float) -> list[PromptChunk]:
        """The chunks of this step, their pages taken."""
        chunks: list[PromptChunk] = []
        budget = self.chunk_tokens
        for prompt in self._candidates(now):
            chunk = PromptChunk(prompt, min(budget, prompt.remaining))
            if not self._has_pages(chunk):
                break
            chunks.append(chunk)
            budget -= chunk.num_tokens
            if budget == 0:
                break
        return chunks

    def queued_tokens(self) -> dict[int, int]:
        """Tokens that are not computed yet, by priority. Of prompts that wait, all: what is known of them already is
        only looked up when they begin."""
        queued: Counter[int] = Counter()
        for prompt in (*self.waiting, *self.running):
            queued[prompt.request.priority] += prompt.remaining
        return dict(queued)

    def remove(self, request_id: str) -> Prompt | None:
        """Take a prompt out, wherever it is; its pages stay its own."""
        return next((self._take_out(p) for p in (*self.waiting, *self.running) if p.request.id == request_id), None)

    def overdue(self, now: float) -> list[Prompt]:
        """Take out the prompts whose deadline has passed."""
        return [self._take_out(prompt) for prompt in (*self.waiting, *self.running) if prompt.deadline <= now]

    def _take_out(self, prompt: Prompt) -> Prompt:
        (self.waiting if prompt in self.waiting else self.running).remove(prompt)
        return prompt

    def _candidates(self, now: float) -> Iterator[Prompt]:
        """Running prompts and, where they are in line, waiting ones; the first that finds no room holds up the rest."""
        room = True
        for prompt in merge(list(self.running), list(self.waiting), key=lambda p: p.precedence):
            if prompt in self.waiting:
                room = room and self._is_next(prompt) and self._start(prompt, now)
            if prompt.tables is not None:
                yield prompt

    def _is_next(self, prompt: Prompt) -> bool:
        line = self._pages.queue
        return line.holding < self.max_requests and line.is_next(prompt.precedence)

    def _start(self, prompt: Prompt, now: float) -> bool:
        """Begin with the pages that are here already, if there is room for the rest."""
        tables, known = self._begun(prompt.request)
        needed = Counter(self._needed(prompt, tables))
        for other in self.running:
            assert other.tables is not None
            needed.update(self._needed(other, other.tables))
        if not self._pages.has_room(needed):
            self._pages.release(tables)
            return False
        prompt.tables, prompt.computed, prompt.known = tables, known, known
        prompt.started = now if prompt.started is None else prompt.started
        self.waiting.remove(prompt)
        insort(self.running, prompt, key=lambda p: p.precedence)
        self._counters.prompt_tokens += prompt.request.num_tokens
        self._counters.prefix_hit_tokens += known
        return True

    def _begun(self, request: Request) -> tuple[Tables, int]:
        """Tables that begin with known pages, and the tokens in them: never all, or nobody could say what follows.

        A drafter that keeps rows needs the last known token's, which is not in its page: that one is computed again.
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

    def _needed(self, prompt: Prompt, tables: Tables) -> dict[str, int]:
        """Pages that a prompt may take yet, those for what it will say at first included."""
        request = prompt.request
        num_tokens = min(request.num_tokens + self._spare_tokens, request.max_total_tokens)
        most = self._pages.demand(num_tokens, self.chunk_tokens)
        missing = self._pages.missing(tables, num_tokens)
        return {n: min(missing[n], most[n] - len(table.page_ids)) for n, table in tables.groups.items()}

    def _has_pages(self, chunk: PromptChunk) -> bool:
        """Take the chunk's pages; while there are too few, the last in line gives back all of its own. False: that is
        this one, which keeps them and waits."""
        prompt = chunk.prompt
        assert prompt.tables is not None
        self._pages.trim(prompt.tables, prompt.computed)
        while not self._pages.extend(prompt.tables, chunk.end):
            last = self._pages.queue.last()
            if last is self and self.running[-1] is prompt:
                return False
            last.evict_last()
        return True

    def _restart(self, prompt: Prompt) -> None:
        assert prompt.tables is not None
        self._pages.release(prompt.tables)
        prompt.tables, prompt.computed, prompt.logprobs, prompt.drafter_hidden = None, 0, [], None
        self.running.remove(prompt)
        self.add(prompt)
        self._counters.preempted += 1
