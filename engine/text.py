"""Tokenization of prompts, and incremental detokenization of output."""

from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.errors import BadRequest, CheckpointRefused

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
RECENT_TOKENS = 32  # no character takes more tokens


class Text:
    """The tokenizer of a checkpoint. It is thread-safe, because it keeps no state of a request."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # transformers' decode spends more time on checking its arguments than the tokenizer on decoding
        plain = tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces
        self._decode = tokenizer.backend_tokenizer.decode if plain else tokenizer.decode

    @classmethod
    def load(cls, path: Path) -> "Text":
        try:
            return cls(AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True))
        except (OSError, ValueError) as error:
            raise CheckpointRefused(f"{path}: no tokenizer that can be loaded ({error})") from error

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text))

    def encode_chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Tokenize a conversation, up to where the assistant's next message begins. Raises BadRequest."""
        if not messages:
            raise BadRequest("chat", "has no message: at least one is needed")
        if self._tokenizer.chat_template is None:
            raise BadRequest("chat", "this model has no chat template; send a prompt")
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise BadRequest("chat", f"the model's chat template refuses it: {error}") from error
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        text: str = self._decode(tokens, skip_special_tokens=True)
        return text


class TextStream:
    """Detokenizes one request's output and returns text as soon as it is final.

    A token may be part of a character, and its text may depend on the token before it (a leading space). So the last
    few tokens are decoded together, and text that ends in an incomplete character waits for the rest.
    """

    def __init__(self, text: Text, prompt: tuple[int, ...], generated: tuple[int, ...] = ()) -> None:
        older, recent = generated[:-RECENT_TOKENS], generated[-RECENT_TOKENS:]
        self._text = text
        self._tokens = list((prompt + older)[-8:])
        self._context = 0  # tokens from here on are decoded together
        self._sent = len(self._tokens)  # tokens before here have been sent
        for token in recent:  # one by one, as they were sent, to find out which text was not sent yet
            self.push((token,))

    def push(self, tokens: tuple[int, ...]) -> str:
        """Add tokens; return the text that they make final, which may be empty."""
        self._tokens += tokens
        before, now = self._decoded()
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._context, self._sent = self._sent, len(self._tokens)
        return now[len(before) :]

    def flush(self) -> str:
        """Return the rest when no more tokens come. Incomplete characters become U+FFFD."""
        before, now = self._decoded()
        self._sent = len(self._tokens)
        return now[len(before) :]

    def _decoded(self) -> tuple[str, str]:
        before = self._text.decode(self._tokens[self._context : self._sent])
        return before, self._text.decode(self._tokens[self._context :])


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return what may be sent, and whether a stop string is complete (then nothing more may be sent)."""
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready, False

    def flush(self) -> str:
        """Return the text that was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
