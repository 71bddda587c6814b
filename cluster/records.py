"""Downloads the steps that decode replicas record (decode/record.py), for `sparkpool bench --record`.

A replica reads its own file in parts of whole lines; the gateway asks all replicas until it has what their files held
at the first answer; the client writes one file for each replica, with the steps since it began.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.proto import sparkpool_pb2 as pb
from cluster.proto.sparkpool_pb2_grpc import InferenceStub
from engine.errors import ConfigError

PART_BYTES = 2**20
HEADER_BYTES = 2**16
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class RecordPart:
    """A part of one replica's file: the file's size in bytes and first line, and whole lines from `offset` on."""

    pool: str
    agent: str
    size: int
    header: str
    offset: int
    lines: bytes = b""

    @property
    def end(self) -> int:
        """The offset of the next part."""
        return self.offset + len(self.lines)


def part_of(file: Path, pool: str, skip: Mapping[str, int], max_bytes: int = PART_BYTES) -> RecordPart:
    """Read the next whole lines of a file. `skip`: bytes to leave out, by the file's stem. Raises OSError."""
    agent = file.stem
    with file.open("rb") as content:
        header = content.readline(HEADER_BYTES)
        offset = max(skip.get(agent, 0), len(header))
        size = content.seek(0, 2)
        content.seek(offset)
        read = content.read(max_bytes)
    lines = read[: read.rfind(b"\n") + 1]
    return RecordPart(pool=pool, agent=agent, size=size, header=header.decode(), offset=offset, lines=lines)


async def all_parts(
    ask: Callable[[dict[str, int]], Awaitable[list[RecordPart | None]]], skip: Mapping[str, int], sizes_only: bool
) -> AsyncIterator[RecordPart]:
    """Yield everything that had been written when the first answers came. `ask` asks all decode replicas; one that
    records nothing answers None. Raises ConfigError if none records."""
    first = [part for part in await ask(dict(skip)) if part is not None]
    if not first:
        raise ConfigError("no decode pool records its steps (decode.POOL.record)")
    if sizes_only:
        for part in first:
            yield replace(part, lines=b"")
        return
    ends, done, parts = {part.agent: part.size for part in first}, dict(skip), first
    while parts:
        for part in parts:
            yield part
            done[part.agent] = part.end
        again = await ask(done) if any(done[agent] < size for agent, size in ends.items()) else []
        parts = [part for part in again if part is not None and part.lines and done.get(part.agent, 0) < part.size]
        parts = [part for part in parts if part.offset < ends.get(part.agent, 0)]


def message_of(part: RecordPart) -> pb.Records:
    return pb.Records(**asdict(part))


class RecordFiles:
    """Writes one file for each replica, with the steps recorded since `begin`."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be written to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--record {folder}: {error}") from None
        self._folder = folder
        self.skip: dict[str, int] = {}

    async def begin(self, stub: InferenceStub, metadata: Metadata) -> None:
        """Note how long the files are now."""
        call = stub.GetRecords(pb.GetRecordsRequest(sizes_only=True), metadata=metadata)
        self.skip = {part.agent: part.size async for part in call}

    async def fetch(self, stub: InferenceStub, metadata: Metadata) -> dict[Path, int]:
        """Write the files, and return the number of steps in each."""
        steps: dict[Path, int] = {}
        async for part in stub.GetRecords(pb.GetRecordsRequest(skip=self.skip), metadata=metadata):
            file = self._folder / f"{Path(part.agent).name}.jsonl"
            with file.open("ab" if file in steps else "wb") as output:
                if file not in steps:
                    output.write(part.header.encode())
                output.write(part.lines)
            steps[file] = steps.get(file, 0) + part.lines.count(b"\n")
        return steps
