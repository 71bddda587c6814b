"""Sends requests to an OpenAI-compatible server, for `sparkpool bench --endpoint`."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from cluster.loadgen.chunks import EndpointAnswer, as_dict, events, message_of, parsed, status_of
from cluster.loadgen.load import CallEvent, CallFailed, RequestRecord, SendRequest
from cluster.loadgen.workload import Job
from engine.errors import ConfigError

APIS = ("chat", "completions")
MAX_SENDS = 10  # of one request that is throttled
MAX_BACKOFF_SECONDS = 60.0  # if the server names no wait
MAX_WAIT_SECONDS = 600.0  # a server that names a longer wait has refused the request (a daily quota)
CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
KEEP_ALIVE_SECONDS = 60.0
MAX_DETAILS = 300  # characters of a server's message that are kept


def base_url(given: str) -> str:
    """Return the URL without a trailing slash, and with /v1 if it has no path. Raises ConfigError."""
    try:
        parts = urlsplit(given)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        good = False
    if not good:
        raise ConfigError("--endpoint: must be like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("--endpoint: must have no user, query or fragment; a key belongs in --key-file")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def read_key(file: Path) -> str:
    """Return the only line of a file. Raises ConfigError, whose text has nothing of the file's content."""
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file {file}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"--key-file {file}: must hold one key, of printable ASCII characters without spaces")
    return key


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and the options that all requests to it share."""

    base: str
    model: str
    chat: bool
    sampling: Mapping[str, object]
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"{self.base}/{'chat/completions' if self.chat else 'completions'}"

    @property
    def headers(self) -> dict[str, str]:
        """No compression: it would hold chunks back until there is enough to compress."""
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Accept": "text/event-stream", "Accept-Encoding": "identity", **bearer}

    def body(self, job: Job) -> dict[str, object]:
        prompt = {"messages": [{"role": "user", "content": job.prompt}]} if self.chat else {"prompt": job.prompt}
        limit = {} if job.max_tokens is None else {"max_tokens": job.max_tokens}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **prompt, **limit, **self.sampling, **stream}

    def failed(self, status: str, details: str) -> CallFailed:
        """Return the server's message as an error: on one line, shortened, and without the key."""
        text = " ".join((details.replace(self.key, "[key]") if self.key else details).split())
        return CallFailed(status, text if len(text) <= MAX_DETAILS else f"{text[:MAX_DETAILS]}...")


class Throttled:
    """The server asks to send the request again later (HTTP 429 or 503)."""

    def note(self, record: RequestRecord, now: float) -> None:
        record.throttled += 1


class Resent:
    """A throttled request is sent again."""

    def note(self, record: RequestRecord, now: float) -> None:
        first_sent = record.first_sent
        record.sent, record.throttled_seconds = now, now - first_sent


@asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[SendRequest]:
    """Yield a function that sends a request to the endpoint, over as many connections as requests are open."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=endpoint.headers) as session:
        yield lambda job: _call(session, endpoint, job)


async def _call(session: aiohttp.ClientSession, endpoint: Endpoint, job: Job) -> AsyncIterator[CallEvent]:
    """Send a request, again while it is throttled, and yield what comes. Raises CallFailed."""
    body = endpoint.body(job)
    for sends in range(1, MAX_SENDS + 1):
        try:
            # a redirect may turn the POST into a GET, and would send the key to another host
            async with session.post(endpoint.url, json=body, allow_redirects=False) as response:
                if response.status == 200:
                    async for event in _stream(response):
                        yield event
                    return
                wait = _wait(response, sends)
                refusal = CallFailed(status_of(response.status), f"HTTP {response.status}: {await _message(response)}")
        except CallFailed as error:
            raise endpoint.failed(error.status, error.details) from None
        except aiohttp.SocketTimeoutError as error:
            raise endpoint.failed("DEADLINE_EXCEEDED", f"no data came for {READ_SECONDS:.0f} s") from error
        except aiohttp.ClientError as error:
            raise endpoint.failed("UNAVAILABLE", f"{type(error).__name__}: {error}") from error
        if wait is None:
            raise endpoint.failed(refusal.status, refusal.details)
        yield Throttled()
        if wait > MAX_WAIT_SECONDS or sends == MAX_SENDS:
            reason = f"sent {sends} times, and the server asks to wait for {wait:.0f} s"
            raise endpoint.failed("RESOURCE_EXHAUSTED", f"{reason}; {refusal.details}")
        await asyncio.sleep(wait)
        yield Resent()


async def _stream(response: aiohttp.ClientResponse) -> AsyncIterator[CallEvent]:
    """Yield the chunks of an answer, then the answer itself if it is complete."""
    if response.content_type == "application/json":
        raise CallFailed("INTERNAL", f"not a stream but one JSON object: {await _message(response)}")
    answer = EndpointAnswer()
    async for data in events(response.content.iter_any()):
        if data == b"[DONE]":
            answer.done = True
        elif not answer.done:
            yield answer.read(parsed(data))
    answer.check()
    yield answer


def _wait(response: aiohttp.ClientResponse, sends: int) -> float | None:
    """Return after how many seconds to send the request again; None if the server will not take it."""
    if response.status not in (429, 503):
        return None
    named = _retry_after(response.headers)
    if named is None and response.status == 429:
        return min(2.0 ** (sends - 1), MAX_BACKOFF_SECONDS)
    return named


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the wait that these headers name, in seconds; None if they name none or an impossible one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    if (until := _moment(headers.get("retry-after"))) is None:
        return None
    sent = _moment(headers.get("date"))  # by the server's clock, which may differ from ours
    return max(0.0, until - (time.time() if sent is None else sent))


def _moment(date: str | None) -> float | None:
    """Return an HTTP date as seconds since 1970; None if it is not a date."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


async def _message(response: aiohttp.ClientResponse) -> str:
    """Return the message in a response that is not a stream."""
    text = (await response.read()).decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return message_of(as_dict(found).get("error") or found)
