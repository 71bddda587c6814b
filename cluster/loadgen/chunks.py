"""Reads the streamed answer of an OpenAI-compatible server: server-sent events, their JSON chunks, the whole answer."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

from cluster.loadgen.load import CallFailed, RequestRecord

NO_USAGE = "NO_USAGE"  # status of a complete answer whose tokens the server did not count
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
BAD_FINISHES = {"error": "INTERNAL", "abort": "ABORTED"}  # vLLM and SGLang finish some broken answers so


@dataclass(frozen=True)
class SseChunk:
    """One chunk of a streamed answer."""

    has_tokens: bool

    def note(self, record: RequestRecord, now: float) -> None:
        record.messages.append((now, int(self.has_tokens)))


@dataclass(kw_only=True)
class EndpointAnswer:
    """Collects what the chunks of an answer say about the whole answer."""

    finish_reason: str = ""
    done: bool = False
    usage: dict[str, object] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def read(self, chunk: dict[str, object]) -> SseChunk:
        has_tokens = False
        for choice in _list(chunk.get("choices")):
            delta = as_dict(choice.get("delta"))
            kinds = (delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
            has_tokens = has_tokens or any(kinds) or bool(choice.get("text"))
            self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)
        for usage in (as_dict(as_dict(chunk.get("x_groq")).get("usage")), as_dict(chunk.get("usage"))):
            self.usage |= usage
            self.times |= {name: value for name, value in _numbers(usage).items() if name.endswith("_time")}
        self.times |= _numbers(as_dict(chunk.get("time_info")))
        return SseChunk(has_tokens)

    def check(self) -> None:
        """Raise CallFailed unless the answer is complete at the end of its stream."""
        if not self.done and not self.finish_reason:
            raise CallFailed("UNAVAILABLE", "the stream ended before [DONE] or a finish_reason")
        if self.finish_reason in BAD_FINISHES:
            raise CallFailed(BAD_FINISHES[self.finish_reason], f"finish_reason is {self.finish_reason!r}")
        if self._count("prompt_tokens") is None or self._count("completion_tokens") is None:
            raise CallFailed(NO_USAGE, "the stream had no usage with prompt_tokens and completion_tokens")

    def note(self, record: RequestRecord, now: float) -> None:
        """Spread the tokens of `usage` evenly over the messages with tokens, but give the first message one."""
        messages = sum(1 for _, any_tokens in record.messages if any_tokens)
        share = iter(_shares(self._count("completion_tokens") or 0, messages))
        record.messages = [(at, next(share) if any_tokens else 0) for at, any_tokens in record.messages]
        record.prompt_tokens = self._count("prompt_tokens") or 0
        record.cached_tokens = _as_int(as_dict(self.usage.get("prompt_tokens_details")).get("cached_tokens")) or 0
        record.finish_reason, record.vendor_times = self.finish_reason, self.times

    def _count(self, name: str) -> int | None:
        return _as_int(self.usage.get(name))


def _shares(tokens: int, messages: int) -> list[int]:
    """Spread `tokens` over `messages`. With fewer tokens than messages, the last message still gets one."""
    if messages < 2:
        return [tokens] * messages
    first, rest = min(tokens, 1), max(tokens - 1, 0)
    ends = [rest * number // (messages - 1) for number in range(messages)]
    return [first, *(after - before for before, after in pairwise(ends))]


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events. The standard drops one that the end of the stream cuts off."""
    rest, data = b"", []
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def parsed(data: bytes) -> dict[str, object]:
    """Parse a chunk. Raises CallFailed if it is no JSON object or reports an error."""
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise CallFailed("INTERNAL", f"malformed JSON in a chunk: {error}") from None
    if not isinstance(chunk, dict):
        raise CallFailed("INTERNAL", f"a chunk is not a JSON object: {data!r}")
    whole = chunk if chunk.get("object") == "error" else None
    if reported := chunk.get("error") or as_dict(chunk.get("x_groq")).get("error") or whole:
        code = _as_int(as_dict(reported).get("code"))
        status = status_of(500 if code is None else code)
        raise CallFailed(status, f"error in the stream: {message_of(reported)}")
    return chunk


def status_of(code: int) -> str:
    """Return the name of the gRPC status that corresponds to an HTTP status."""
    if code in STATUS:
        return STATUS[code]
    return "INTERNAL" if code >= 500 else "FAILED_PRECONDITION" if code >= 400 else "UNKNOWN"


def message_of(error: object) -> str:
    names = ("message", "detail")
    return next((str(as_dict(error)[name]) for name in names if as_dict(error).get(name)), str(error))


def as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _as_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _numbers(values: dict[str, object]) -> dict[str, float]:
    """Return the finite numbers among these values; True and False are none."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)}
