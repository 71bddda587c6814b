"""A small server of OpenAI's API with scripted answers, and `sparkpool bench --endpoint` against it."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.loadgen.load import RequestRecord

KEY = "sk-never-to-be-told"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def chunk(text: str = "", finish: str | None = None, **more: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


def usage(prompt: int, completion: int, **more: object) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


WHOLE: list[Any] = [chunk(), chunk("a b c"), chunk(" d e"), chunk("", "length"), usage(11, 7), "[DONE]"]


class Server:
    """Records requests and their times; gives scripted answers, the last one repeatedly."""

    def __init__(self, *answers: Handler) -> None:
        self._answers = answers
        self.asked: list[tuple[float, str, dict[str, Any], dict[str, str]]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((time.monotonic(), request.path, await request.json(), dict(request.headers)))
        return await self._answers[min(len(self.asked), len(self._answers)) - 1](request)

    @property
    def times(self) -> list[float]:
        return [at for at, *_ in self.asked]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body, _ in self.asked]


def streaming(*told: Any, gap: float = 0.0, broken: bool = False) -> Handler:
    """Objects as chunks, text as it is; `broken` closes the connection in the middle of the answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for one in told:
            await response.write(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode())
            await asyncio.sleep(gap)
        if broken:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def refusing(status: int, message: str = "", **headers: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": message}}, status=status, headers=named)

    return answer


@contextmanager
def serving(*answers: Handler) -> Iterator[Server]:
    """A server on a port of its own, in a thread of its own: the command keeps the main thread."""
    server, loop = Server(*answers), asyncio.new_event_loop()
    service = web.Application()
    service.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(service)

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server.url = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "200"})


class Measured:
    """One run of the command, with a prompt from a file and a key, unless `words` say otherwise."""

    def __init__(self, server: Server, folder: Path, *words: str, requests: int = 1) -> None:
        prompts, self.key_file, self.file = folder / "prompts.txt", folder / "key", folder / "run.json"
        prompts.write_text("one prompt\n")
        self.key_file.write_text(f"{KEY}\n")
        given = () if "--input-tokens" in words or "--prompts" in words else ("--prompts", str(prompts))
        where = ("--endpoint", server.url, "--model", "m", "--key-file", str(self.key_file), "--json", str(self.file))
        self.done = bench(*where, *given, "--requests", str(requests), *words)
        assert self.file.exists(), self.done.output
        self.text = self.file.read_text()
        self.content = json.loads(self.text)
        self.records = [RequestRecord(**one) for one in self.content["requests"]]

    @property
    def record(self) -> RequestRecord:
        (record,) = self.records
        return record

    @property
    def failure(self) -> tuple[str, str]:
        """The only request's status and details; nothing of it is counted."""
        assert self.done.exit_code == 1
        figures = self.content["summary"]
        assert (figures["completed"], figures["failed"]) == (0, {self.record.status: 1})
        assert self.record.details in self.done.output
        return self.record.status, self.record.details
