"""Which prompts get how many tokens of a step. First come, first served, under one token budget."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from engine.batch import Row
from engine.pages import Pages, Tables
from engine.types import Request


@dataclass
class Prompt:
    """A request on its way through the model. Tokens below `computed` are in pages."""

    request: Request
    arrived: float
    computed: int = 0
    started: float | None = None
    tables: Tables | None = None

    @property
    def remaining(self) -> int:
        return self.request.num_tokens - self.computed


@dataclass(frozen=True)
class PromptChunk:
    """What one prompt puts into this step."""

    prompt: Prompt
    num_tokens: int

    @property
    def end(self) -> int:
        return self.prompt.computed + self.num_tokens

    @property
    def is_last(self) -> bool:
        return self.num_tokens == self.prompt.remaining

    @property
    def row(self) -> Row:
        prompt = self.prompt
        assert prompt.tables is not None
        prompt.tables.trim(prompt.computed)
        prompt.tables.extend(self.end)
        tokens = prompt.request.tokens[prompt.computed : self.end]
        return Row(tokens, prompt.computed, prompt.tables, num_logits=int(self.is_last))


class PromptSchedule:
    """Prompts that wait and prompts that run. A prompt runs once all its pages are reserved."""

    def __init__(self, pages: Pages, chunk_tokens: int, max_requests: int) -> None:
        self._pages = pages
        self.chunk_tokens = chunk_tokens
        self._max_requests = max_requests
        self.waiting: deque[Prompt] = deque()
        self.running: list[Prompt] = []

    def next(self, now: float) -> list[PromptChunk]:
        """The chunks of this step. Running prompts go first; the longest-waiting ones join while there is room."""
        chunks = []
        budget = self.chunk_tokens
        for prompt in self._candidates(now):
            chunks.append(PromptChunk(prompt, min(budget, prompt.remaining)))
            budget -= chunks[-1].num_tokens
            if budget == 0:
                break
        return chunks

    def remove(self, request_id: str) -> Prompt | None:
        """Take a prompt out, wherever it is."""
        for prompts in (self.waiting, self.running):
            for prompt in prompts:
                if prompt.request.id == request_id:
                    prompts.remove(prompt)
                    return prompt
        return None

    def _candidates(self, now: float) -> Iterator[Prompt]:
        yield from list(self.running)
        while self.waiting and len(self.running) < self._max_requests:
            prompt = self.waiting[0]
            demand = self._pages.demand(prompt.request.num_tokens, self.chunk_tokens)
            prompt.tables = self._pages.reserve(prompt.request.id, demand)
            if prompt.tables is None:
                return
            prompt.started = now
            self.running.append(self.waiting.popleft())
            yield prompt
