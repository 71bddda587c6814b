"""A request that is being decoded: its tokens, its pages, and the only place where it ends.

prompt ++ generated            tokens below `num_cached` are in pages;
[ in pages        ][ last ]    the last token is not, until the step that computes what follows it
"""

from engine.pages import Tables
from engine.text import Text, TextStream
from engine.types import Chunk, FinishReason, Request


class Sequence:
    """One request in a decode replica, from its handoff to its end."""

    def __init__(self, request: Request, text: Text, eos_token_ids: tuple[int, ...]) -> None:
        self.request = request
        self.tokens = list(request.tokens)
        self.tables: Tables | None = None
        self.num_cached = request.num_tokens
        self.finish: FinishReason | None = None
        self._text = TextStream(text, request.prompt, request.generated)
        eos = () if request.stop.ignore_eos else eos_token_ids
        self._stop_tokens = frozenset((*eos, *request.stop.stop_token_ids))

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def uncached(self) -> list[int]:
        """Committed tokens that no page holds yet: what the next step starts from."""
        return self.tokens[self.num_cached :]

    def commit(self, tokens: list[int], logprobs: list[float]) -> Chunk:
        """Take tokens up to the first that ends the request; what it says is in the chunk."""
        text = ""
        count = 0
        for token in tokens:
            count += 1
            self.tokens.append(token)
            if token in self._stop_tokens:
                self.finish = FinishReason.STOP
                break
            text += self._text.push((token,))
            if self.num_generated >= self.request.stop.max_tokens:
                self.finish = FinishReason.LENGTH
                break
        if self.finish is not None:
            text += self._text.flush()
        return Chunk(
            request_id=self.id,
            tokens=tuple(tokens[:count]),
            logprobs=tuple(logprobs[:count]),
            text=text,
            finish=self.finish,
        )
