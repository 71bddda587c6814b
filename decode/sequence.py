"""The requests of a decode replica: waiting for their pages (`WaitingSequence`), or running on them (`Sequence`).

prompt ++ generated            the KV entries of the first `num_cached` tokens are in pages;
[ in pages        ][ last ]    the last token has none until the step that computes its successor
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from engine.drafters import Anchor
from engine.pages import Pages, Precedence, Tables
from engine.stats import Acceptance
from engine.text import StopStrings, Text, TextStream
from engine.types import Chunk, FinishReason, Request, SampledToken, Sampling, StopRules


class SequenceOutput:
    """The tokens and the text of one request. Nothing else decides where a request finishes."""

    def __init__(self, request: Request, text: Text, eos_token_ids: tuple[int, ...]) -> None:
        stop = request.stop
        self.tokens = list(request.tokens)
        self.finish: FinishReason | None = None
        self._request = request
        self._stop_strings = StopStrings(stop.stop)
        self._text = TextStream(text, request.prompt, () if stop.stop else request.generated)
        if stop.stop:  # the text that is held back depends on all generated tokens
            for count, token in enumerate(request.generated, start=1):
                self._sendable(self._text.push((token,)), count)
        self._stop_tokens = frozenset((*(() if stop.ignore_eos else eos_token_ids), *stop.stop_token_ids))

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self._request.prompt)

    def commit(self, sampled: list[SampledToken]) -> Chunk:
        """Take tokens up to the first that finishes the request, and return them with the text to send."""
        text = ""
        taken: list[SampledToken] = []
        for draw in sampled:
            taken.append(draw)
            self.tokens.append(draw.token)
            ends, more, stopped = draw.token in self._stop_tokens, "", False
            if not ends:
                more, stopped = self._sendable(self._text.push((draw.token,)), self.num_generated)
            text += more
            if ends or stopped:
                self.finish = FinishReason.STOP
            elif self.num_generated >= self._request.stop.max_tokens:
                self.finish = FinishReason.LENGTH
            if self.finish is not None:
                text += "" if stopped else self._held_back()
                break
        return Chunk(
            request_id=self._request.id,
            tokens=tuple(draw.token for draw in taken),
            logprobs=tuple(draw.logprob for draw in taken),
            text=text,
            top=tuple(draw.top for draw in taken) if self._request.sampling.top_logprobs else (),
            finish=self.finish,
        )

    def _sendable(self, text: str, num_generated: int) -> tuple[str, bool]:
        """The part of `text` that can be sent, and whether it completes a stop string; none counts before
        `min_tokens`."""
        if num_generated < self._request.stop.min_tokens:
            return text, False
        return self._stop_strings.push(text)

    def _held_back(self) -> str:
        """The text that was held back in case a stop string followed."""
        text, stopped = self._stop_strings.push(self._text.flush())
        return text if stopped else text + self._stop_strings.flush()


@dataclass(eq=False)
class WaitingSequence:
    """A request with its first token, whose pages still have to be read. `arrived` is on the engine's clock.

    The drafter's context begins at token `context_from`; `drafter_row` is the drafter's state after the last token.
    """

    request: Request
    arrived: float
    output: SequenceOutput
    context_from: int = 0
    drafter_row: Tensor | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def precedence(self) -> Precedence:
        return self.request.precedence(self.arrived)

    @property
    def deadline(self) -> float:
        """The time on the engine's clock at which the request fails if it has not finished."""
        return self.arrived + self.request.seconds_left

    @property
    def finish(self) -> FinishReason | None:
        return self.output.finish

    def with_pages(self, tables: Tables) -> "Sequence":
        """Return the sequence as it runs, once its KV entries are in the pages of `tables`."""
        return Sequence(self.request, self.arrived, self.output, self.context_from, self.drafter_row, tables=tables)


@dataclass(eq=False, kw_only=True)
class Sequence(WaitingSequence):
    """A request that takes part in decode steps. It always has pages."""

    tables: Tables
    acceptance: Acceptance = field(default_factory=Acceptance)

    @property
    def tokens(self) -> list[int]:
        return self.output.tokens

    @property
    def num_cached(self) -> int:
        """The tokens whose KV entries are in pages: all but the last."""
        return len(self.output.tokens) - 1

    @property
    def anchor(self) -> Anchor:
        """The last token, from which drafting starts."""
        return Anchor(
            self.tokens[-1], self.num_cached, self.tables, self.request.sampling, self.context_from, self.drafter_row
        )

    @property
    def max_drafts(self) -> int:
        """The most drafts that can all become part of the output: the step itself adds one more token."""
        return min(self.request.stop.max_tokens - self.output.num_generated - 1, self.request.max_drafts)


def dummy_sequences(
    pages: Pages, text: Text, context: int, step_tokens: int, count: int, sampling: Sampling, vocab_size: int = 1
) -> Iterator[Sequence]:
    """Yield up to `count` sequences with `context` tokens in pages and room for a step; fewer if pages run out.

    The caller releases their tables. Their last tokens differ, as those of real requests do: if they were all the
    same, a mixture of experts would route all of them to the experts of one.
    """
    for n in range(count):
        stop = StopRules(max_tokens=2 * step_tokens)
        request = Request(id=f"dummy-{n}", prompt=(0,) * context, sampling=sampling, stop=stop)
        output = SequenceOutput(request, text, ())
        output.commit([SampledToken(n * vocab_size // count, 0.0)])
        tables = pages.open(request.id)
        if not pages.extend(tables, context + step_tokens):
            return
        yield WaitingSequence(request, 0.0, output).with_pages(tables)
