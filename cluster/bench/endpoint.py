"""Calls to an OpenAI-compatible server: what `sparkpool bench --endpoint` measures."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from cluster.bench.chunks import Answer, as_dict, events, message_of, parsed, status_of
from cluster.bench.load import Ask, Failed, Record, Told
from cluster.bench.workload import Job
from engine.errors import ConfigError

APIS = ("chat", "completions")
TRIES = 10  # sendings of a request that is refused for now
LONGEST_PAUSE_SECONDS = 60.0  # where the server names none
LONGEST_WAIT_SECONDS = 600.0  # a server that names more has refused for good (a day's quota)
CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 600.0
KEEP_ALIVE_SECONDS = 60.0
MOST_DETAILS = 300  # characters


def base_url(given: str) -> str:
    """The URL without a slash at the end, and with /v1 if it has no path. Raises ConfigError."""
    try:
        parts = urlsplit(given)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ConfigError("--endpoint: must be like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("--endpoint: must have no user, query or fragment; a key belongs in --key-file")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def read_key(file: Path) -> str:
    """The only line of a file. Raises ConfigError, which does not tell what is in it."""
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file {file}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"--key-file {file}: must hold one key, of printable ASCII characters without spaces")
    return key


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint, and what every request to it has."""

    base: str
    model: str
    chat: bool
    sampling: Mapping[str, Any]
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"{self.base}/{'chat/completions' if self.chat else 'completions'}"

    @property
    def headers(self) -> dict[str, str]:
        """Compression would keep chunks back until there is enough to compress."""
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Accept": "text/event-stream", "Accept-Encoding": "identity", **bearer}

    def body(self, job: Job) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": job.prompt}]} if self.chat else {"prompt": job.prompt}
        most = {} if job.max_tokens is None else {"max_tokens": job.max_tokens}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **prompt, **most, **self.sampling, **stream}

    def failed(self, status: str, details: str) -> Failed:
        """What the server said, short, on one line, and without the key if it repeats it."""
        said = details.replace(self.key, "[key]") if self.key else details
        said = " ".join(said.split())
        return Failed(status, said if len(said) <= MOST_DETAILS else f"{said[:MOST_DETAILS]}...")


class Refused:
    """The server will take the request later."""

    def note(self, record: Record, now: float) -> None:
        record.throttled += 1


class SentAgain:
    """The wait is over."""

    def note(self, record: Record, now: float) -> None:
        first_sent = record.first_sent
        record.sent, record.throttled_seconds = now, now - first_sent


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Ask]:
    """What sends requests there. Connections are kept, as many as there are requests under way."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers) as session:
        yield lambda job: _call(session, target, job)


async def _call(session: aiohttp.ClientSession, target: Target, job: Job) -> AsyncIterator[Told]:
    """Send a job, again and again while it is refused for now. Raises Failed."""
    body = target.body(job)
    for tried in range(1, TRIES + 1):
        try:
            # a redirected POST may become a GET, and the key would go to another host
            async with session.post(target.url, json=body, allow_redirects=False) as response:
                if response.status == 200:
                    async for told in _stream(response):
                        yield told
                    return
                wait = _wait(response, tried)
                refusal = Failed(status_of(response.status), f"HTTP {response.status}: {await _said(response)}")
        except Failed as error:
            raise target.failed(error.status, error.details) from None
        except aiohttp.SocketTimeoutError as error:
            raise target.failed("DEADLINE_EXCEEDED", f"no byte came for {SILENCE_SECONDS:.0f} s") from error
        except aiohttp.ClientError as error:
            raise target.failed("UNAVAILABLE", f"{type(error).__name__}: {error}") from error
        if wait is None:
            raise target.failed(refusal.status, refusal.details)
        yield Refused()
        if wait > LONGEST_WAIT_SECONDS or tried == TRIES:
            reason = f"{tried} tries, and it asks to wait for {wait:.0f} s"
            raise target.failed("RESOURCE_EXHAUSTED", f"{reason}; {refusal.details}")
        await asyncio.sleep(wait)
        yield SentAgain()


async def _stream(response: aiohttp.ClientResponse) -> AsyncIterator[Told]:
    """The chunks of an answer, and the answer if it is whole."""
    if response.content_type == "application/json":
        raise Failed("INTERNAL", f"no stream but one JSON object: {await _said(response)}")
    answer = Answer()
    async for data in events(response.content.iter_any()):
        if data == b"[DONE]":
            answer.done = True
        elif not answer.done:
            yield answer.read(parsed(data))
    answer.check()
    yield answer


def _wait(response: aiohttp.ClientResponse, tried: int) -> float | None:
    """Seconds after which the server may be asked again; None if that would not help."""
    if response.status not in (429, 503):
        return None
    named = _retry_after(response.headers)
    if named is None and response.status == 429:
        return min(2.0 ** (tried - 1), LONGEST_PAUSE_SECONDS)
    return named


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that these headers name, in seconds; None if they name none that makes sense."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    if (until := _moment(headers.get("retry-after"))) is None:
        return None
    sent = _moment(headers.get("date"))  # by the server's clock: ours may differ
    return max(0.0, until - (time.time() if sent is None else sent))


def _moment(date: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None if it is none."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


async def _said(response: aiohttp.ClientResponse) -> str:
    """The message of an answer that is no stream."""
    text = (await response.read()).decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return message_of(as_dict(found).get("error") or found)
