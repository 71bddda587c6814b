"""The answer of an OpenAI-compatible server as it streams in: server-sent events, chunks, and what they come to."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cluster.bench.load import Failed, Record

NO_USAGE = "NO_USAGE"  # the answer is complete, and the server did not say how many tokens it has
STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
BAD_FINISHES = {"error": "INTERNAL", "abort": "ABORTED"}  # vLLM and SGLang end some broken answers like this


@dataclass(frozen=True)
class Chunk:
    has_tokens: bool

    def note(self, record: Record, now: float) -> None:
        record.messages.append((now, int(self.has_tokens)))


@dataclass(kw_only=True)
class Answer:
    """What the chunks of an answer have told so far of the whole."""

    finish_reason: str = ""
    done: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def read(self, chunk: dict[str, Any]) -> Chunk:
        has_tokens = False
        for choice in _list(chunk.get("choices")):
            delta = as_dict(choice.get("delta"))
            kinds = (delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
            has_tokens = has_tokens or any(kinds) or bool(choice.get("text"))
            self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)
        for usage in (as_dict(as_dict(chunk.get("x_groq")).get("usage")), as_dict(chunk.get("usage"))):
            self.usage |= usage
            self.times |= {name: value for name, value in usage.items() if name.endswith("_time") and _is_number(value)}
        self.times |= {name: value for name, value in as_dict(chunk.get("time_info")).items() if _is_number(value)}
        return Chunk(has_tokens)

    def check(self) -> None:
        """Raise Failed unless the answer is whole, now that the stream has ended."""
        if not self.done and not self.finish_reason:
            raise Failed("UNAVAILABLE", "the stream ended before [DONE] or a finish_reason")
        if self.finish_reason in BAD_FINISHES:
            raise Failed(BAD_FINISHES[self.finish_reason], f"finish_reason is {self.finish_reason!r}")
        if not all(type(self.usage.get(name)) is int for name in ("prompt_tokens", "completion_tokens")):
            raise Failed(NO_USAGE, "the stream had no usage with prompt_tokens and completion_tokens")

    def note(self, record: Record, now: float) -> None:
        """Spread the count of tokens over the messages that had any: evenly, but the first has one."""
        tokens = self.usage["completion_tokens"]
        places = [place for place, (_, any_tokens) in enumerate(record.messages) if any_tokens]
        share = iter(_shares(tokens, len(places)))
        record.messages = [(at, next(share) if any_tokens else 0) for at, any_tokens in record.messages]
        record.prompt_tokens = self.usage["prompt_tokens"]
        cached = as_dict(self.usage.get("prompt_tokens_details")).get("cached_tokens")
        record.cached_tokens = cached if type(cached) is int else 0
        record.finish_reason, record.vendor_times = self.finish_reason, self.times


def _shares(tokens: int, messages: int) -> list[int]:
    """`tokens` over so many messages. With fewer tokens than messages, the last one still gets one."""
    if messages < 2:
        return [tokens] * messages
    first, rest = min(tokens, 1), max(tokens - 1, 0)
    ends = [rest * place // (messages - 1) for place in range(messages)]
    return [first, *(after - before for before, after in pairwise(ends))]


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events; one that the end of the stream cuts off is dropped, as the standard says."""
    rest, data = b"", []
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def parsed(data: bytes) -> dict[str, Any]:
    """A chunk that is no error. Raises Failed."""
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise Failed("INTERNAL", f"malformed JSON in a chunk: {error}") from None
    if not isinstance(chunk, dict):
        raise Failed("INTERNAL", f"a chunk is no JSON object: {data!r}")
    whole = chunk if chunk.get("object") == "error" else None
    if told := chunk.get("error") or as_dict(chunk.get("x_groq")).get("error") or whole:
        code = as_dict(told).get("code")
        raise Failed(status_of(code if type(code) is int else 500), f"error in the stream: {message_of(told)}")
    return chunk


def status_of(code: int) -> str:
    """The name that gRPC has for an HTTP status."""
    if code in STATUS:
        return STATUS[code]
    return "INTERNAL" if code >= 500 else "FAILED_PRECONDITION" if code >= 400 else "UNKNOWN"


def message_of(error: Any) -> str:
    names = ("message", "detail")
    return next((str(as_dict(error)[name]) for name in names if as_dict(error).get(name)), str(error))


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
