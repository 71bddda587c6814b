"""A request that is being decoded: its tokens, its pages, and the only place where it ends.

prompt ++ generated            tokens below `num_cached` are in pages;
[ in pages        ][ last ]    the last token is not, until the step that computes what follows it
"""

from collections.abc import Iterator

from torch import Tensor

from engine.drafters import Anchor
from engine.facts import Acceptance
from engine.pages import Pages, Precedence, Tables
from engine.text import StopStrings, Text, TextStream
from engine.types import Chunk, FinishReason, Request, SampledToken, Sampling, StopRules


class Sequence:
    """One request in a decode replica, from its handoff to its end."""

    def __init__(self, request: Request, text: Text, eos_token_ids: tuple[int, ...], arrived: float) -> None:
        self.request = request
        self.arrived = arrived
        self.tokens = list(request.tokens)
        self.tables: Tables | None = None
        self.num_cached = request.num_tokens
        self.context_from = 0
        self.drafter_hidden: Tensor | None = None
        self.acceptance = Acceptance()
        self.finish: FinishReason | None = None
        self._stop_strings = StopStrings(request.stop.stop)
        self._text = TextStream(text, request.prompt, () if request.stop.stop else request.generated)
        if request.stop.stop:  # what is held back follows from everything that was said
            for count, token in enumerate(request.generated, start=1):
                self._said(self._text.push((token,)), count)
        eos = () if request.stop.ignore_eos else eos_token_ids
        self._stop_tokens = frozenset((*eos, *request.stop.stop_token_ids))

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def precedence(self) -> Precedence:
        return self.request.precedence(self.arrived)

    @property
    def deadline(self) -> float:
        """On the engine's clock."""
        return self.arrived + self.request.seconds_left

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def anchor(self) -> Anchor:
        """The last token: committed, and in no page yet. What the next step starts from."""
        assert self.tables is not None
        position = len(self.tokens) - 1
        return Anchor(
            self.tokens[-1], position, self.tables, self.request.sampling, self.context_from, self.drafter_hidden
        )

    @property
    def most_drafts(self) -> int:
        """Drafts of which every one could still be said: the step itself gives one more token."""
        return min(self.request.stop.max_tokens - self.num_generated - 1, self.request.max_drafts)

    def commit(self, drawn: list[SampledToken]) -> Chunk:
        """Take tokens up to the first that ends the request; what it says is in the chunk."""
        text = ""
        taken: list[SampledToken] = []
        for draw in drawn:
            taken.append(draw)
            self.tokens.append(draw.token)
            ends = draw.token in self._stop_tokens
            said, stopped = ("", False) if ends else self._said(self._text.push((draw.token,)), self.num_generated)
            text += said
            if ends or stopped:
                self.finish = FinishReason.STOP
            elif self.num_generated >= self.request.stop.max_tokens:
                self.finish = FinishReason.LENGTH
            if self.finish is not None:
                text += "" if stopped else self._rest()
                break
        return Chunk(
            request_id=self.id,
            tokens=tuple(draw.token for draw in taken),
            logprobs=tuple(draw.logprob for draw in taken),
            text=text,
            top=tuple(draw.top for draw in taken) if self.request.sampling.top_logprobs else (),
            finish=self.finish,
        )

    def _said(self, text: str, num_generated: int) -> tuple[str, bool]:
        """What may be sent of `text`, and whether it completes a stop string; none counts before `min_tokens`."""
        if num_generated < self.request.stop.min_tokens:
            return text, False
        return self._stop_strings.push(text)

    def _rest(self) -> str:
        """What is still held back when the request ends otherwise than by a stop string."""
        said, stopped = self._stop_strings.push(self._text.flush())
        return said if stopped else said + self._stop_strings.flush()


def stand_ins(
    pages: Pages, text: Text, context: int, step_tokens: int, most: int, sampling: Sampling, vocab_size: int = 1
) -> Iterator[Sequence]:
    """Requests as they are in the middle of an answer, with `context` tokens in pages and room for a step; `most` of
    them, or as many as there are pages for. Whoever takes them releases their tables. Each has said something else, as
    in life: were they all the same, a mixture of experts would need no more of them for many than for one."""
    for n in range(most):
        stop = StopRules(max_tokens=2 * step_tokens)
        request = Request(id=f"stand-in-{n}", prompt=(0,) * context, sampling=sampling, stop=stop)
        sequence = Sequence(request, text, (), 0.0)
        sequence.commit([SampledToken(n * vocab_size // most, 0.0)])
        sequence.tables = pages.open(sequence.id)
        if not pages.extend(sequence.tables, context + step_tokens):
            return
        yield sequence
