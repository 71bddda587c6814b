"""What decode replicas recorded, on its way to whoever asks: `sparkpool bench --record`.

A replica reads its own file (decode/record.py) in parts of whole lines; the gateway asks all of them until it has what
was there when it began; the client writes a file for each replica, of the steps since it began.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.proto import sparkpool_pb2 as pb
from engine.errors import ConfigError

PART_BYTES = 2**20
HEADER_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of one file: its size and first line, and whole lines from `offset` on."""

    pool: str
    agent: str
    size: int
    header: str
    offset: int
    lines: bytes = b""

    @property
    def end(self) -> int:
        """Where the next part begins."""
        return self.offset + len(self.lines)


def part_of(file: Path, pool: str, skip: Mapping[str, int], most: int = PART_BYTES) -> Part:
    """The next whole lines of a file, at most so many bytes. `skip`: bytes that are not wanted, by the file's stem.

    Raises OSError if it cannot be read.
    """
    agent = file.stem
    with file.open("rb") as content:
        header = content.readline(HEADER_BYTES)
        offset = max(skip.get(agent, 0), len(header))
        size = content.seek(0, 2)
        content.seek(offset)
        read = content.read(most)
    lines = read[: read.rfind(b"\n") + 1]
    return Part(pool=pool, agent=agent, size=size, header=header.decode(), offset=offset, lines=lines)


async def all_parts(
    ask: Callable[[dict[str, int]], Awaitable[list[Part | None]]], skip: Mapping[str, int], sizes_only: bool
) -> AsyncIterator[Part]:
    """Everything that had been written when the first answers came. `ask` asks all replicas that decode; one that
    records nothing answers None. Raises ConfigError if none does."""
    first = [part for part in await ask(dict(skip)) if part is not None]
    if not first:
        raise ConfigError("no decode pool records its steps (decode.POOL.record)")
    if sizes_only:
        for part in first:
            yield replace(part, lines=b"")
        return
    until, had, parts = {part.agent: part.size for part in first}, dict(skip), first
    while parts:
        for part in parts:
            yield part
            had[part.agent] = part.end
        again = await ask(had) if any(had[agent] < size for agent, size in until.items()) else []
        parts = [part for part in again if part is not None and part.lines and had.get(part.agent, 0) < part.size]
        parts = [part for part in parts if part.offset < until.get(part.agent, 0)]


def message_of(part: Part) -> pb.Records:
    return pb.Records(**asdict(part))


class Kept:
    """A client's copies: one file for each replica, of what was recorded since the beginning."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be written to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--record {folder}: {error}") from None
        self._folder = folder
        self.skip: dict[str, int] = {}

    async def begin(self, stub: Any, metadata: Any) -> None:
        """Note how much there is already."""
        call = stub.GetRecords(pb.GetRecordsRequest(sizes_only=True), metadata=metadata)
        self.skip = {part.agent: part.size async for part in call}

    async def fetch(self, stub: Any, metadata: Any) -> dict[Path, int]:
        """Write what has come since: the files, and how many steps each has."""
        steps: dict[Path, int] = {}
        async for part in stub.GetRecords(pb.GetRecordsRequest(skip=self.skip), metadata=metadata):
            file = self._folder / f"{Path(part.agent).name}.jsonl"
            with file.open("ab" if file in steps else "wb") as output:
                if file not in steps:
                    output.write(part.header.encode())
                output.write(part.lines)
            steps[file] = steps.get(file, 0) + part.lines.count(b"\n")
        return steps
