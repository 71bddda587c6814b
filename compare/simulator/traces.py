"""Workloads from files, and to files.

    Mooncake   *.jsonl   timestamp (ms), input_length, output_length, hash_ids: one for each block of 512 tokens
    Azure      *.csv     TIMESTAMP, ContextTokens, GeneratedTokens: as published in 2023 and in 2024
    ours       *.jsonl   at (seconds), input_tokens, output_tokens; where known domain, tier, and prefix (a name) with
                         prefix_tokens: the beginning of the prompt, which those of the same name share

Each also as *.gz. Lines may be in any order; empty ones do not count.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from compare.simulator.workload import LONGEST_PROMPT, Arrival, PromptSegment, Workload
from engine.errors import ConfigError

BLOCK_TOKENS = 512
"""What one of Mooncake's `hash_ids` stands for; the last of a prompt for what is left."""
MOONCAKE_KEYS = {"timestamp", "input_length", "output_length", "hash_ids"}
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
OUR_KEYS = {"at", "input_tokens", "output_tokens", "domain", "tier", "prefix", "prefix_tokens"}
JSON_LINES, CSV = ".jsonl", ".csv"

Row = dict[str, object]
Reader = Callable[[str], Arrival]


class Malformed(Exception):
    """A line of a trace is malformed."""


def read(file: Path) -> Workload:
    """The workload in a file, whichever of the formats it has. Raises ConfigError, with file and line."""
    suffix = _suffix(file)
    try:
        with _opened(file, "rt") as text:
            arrivals = _arrivals(file, suffix, text)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    if not arrivals:
        raise ConfigError(f"{file}: the trace is empty")
    if suffix == CSV:  # times of day: the earliest is the start
        start = min(arrival.at for arrival in arrivals)
        arrivals = [replace(arrival, at=arrival.at - start) for arrival in arrivals]
    return Workload(tuple(arrivals))


def write(workload: Workload, file: Path) -> None:
    """Write a workload in our own format. A line can name one shared prefix: raise ConfigError if there are more."""
    if _suffix(file) != JSON_LINES:
        raise ConfigError(f"{file}: a workload is written as .jsonl or .jsonl.gz")
    for number, arrival in enumerate(workload, start=1):
        if len(arrival.shared) > 1:
            raise ConfigError(f"{file}:{number}: would share {len(arrival.shared)} stretches; a line has room for one")
    try:
        with _opened(file, "wt") as text:
            text.writelines(json.dumps(_our_row(arrival)) + "\n" for arrival in workload)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None


def _our_row(arrival: Arrival) -> Row:
    row: Row = {"at": arrival.at, "input_tokens": arrival.input_tokens, "output_tokens": arrival.output_tokens}
    row |= {key: value for key, value in (("domain", arrival.domain), ("tier", arrival.tier)) if value}
    for segment in arrival.shared:
        row |= {"prefix": segment.name, "prefix_tokens": segment.tokens}
    return row


def _suffix(file: Path) -> str:
    name = file.name.lower().removesuffix(".gz")
    for suffix in (JSON_LINES, CSV):
        if name.endswith(suffix):
            return suffix
    raise ConfigError(f"{file}: a trace is a .jsonl or a .csv file, or one of them with .gz")


def _opened(file: Path, mode: Literal["rt", "wt"]) -> TextIOWrapper:
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"  # some write a mark at the beginning
    if file.suffix.lower() == ".gz":
        return gzip.open(file, mode, encoding=encoding)
    return file.open(mode, encoding=encoding)


def _arrivals(file: Path, suffix: str, text: Iterable[str]) -> list[Arrival]:
    reader: Reader | None = None
    arrivals = []
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            if reader:
                arrivals.append(reader(line.strip()))
            elif suffix == CSV:
                reader = _csv_reader(line.strip())
            else:
                reader = _json_reader(line.strip())
                arrivals.append(reader(line.strip()))
        except Malformed as fault:
            raise ConfigError(f"{file}:{number}: {fault}") from None
    return arrivals


def _csv_reader(header: str) -> Reader:
    if header != AZURE_HEADER:
        raise Malformed(f"the columns are {header!r:.80}; should be {AZURE_HEADER!r}")
    return _Azure().arrival


def _json_reader(first: str) -> Reader:
    if _parsed(first).keys() & MOONCAKE_KEYS:
        return partial(_mooncake, {})
    return _ours


class _Azure:
    """Times are counted from the first line's until all are known: their own digits are too many for a float."""

    def __init__(self) -> None:
        self._first: datetime | None = None

    def arrival(self, line: str) -> Arrival:
        fields = line.split(",")
        if len(fields) != 3:
            raise Malformed(f"has {len(fields)} fields; should be 3")
        try:
            when = datetime.fromisoformat(fields[0])
        except ValueError:
            raise Malformed(f"TIMESTAMP is {fields[0]!r:.80}; should be like 2023-11-16 18:17:03.9799600") from None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        self._first = self._first or when
        return Arrival(
            at=(when - self._first).total_seconds(),
            input_tokens=_counted("ContextTokens", _whole(fields[1])),
            output_tokens=_counted("GeneratedTokens", _whole(fields[2])),
        )


def _mooncake(blocks: dict[int, PromptSegment], line: str) -> Arrival:
    """`blocks`: full ones that earlier lines named."""
    row = _parsed(line)
    tokens = _counted("input_length", _field(row, "input_length"))
    ids = _field(row, "hash_ids")
    if not isinstance(ids, list) or not all(type(block) is int for block in ids):
        raise Malformed("hash_ids should be a list of whole numbers")
    needed = -(-tokens // BLOCK_TOKENS)
    if len(ids) != needed:
        raise Malformed(f"{len(ids)} hash_ids for input_length {tokens}; should be {needed}, one for {BLOCK_TOKENS}")
    shared = [blocks.setdefault(block, PromptSegment(str(block), BLOCK_TOKENS)) for block in ids[:-1]]
    shared.append(PromptSegment(str(ids[-1]), tokens - BLOCK_TOKENS * (needed - 1)))
    return Arrival(
        at=_moment(row, "timestamp") / 1000,
        input_tokens=tokens,
        output_tokens=_counted("output_length", _field(row, "output_length")),
        shared=tuple(shared),
    )


def _ours(line: str) -> Arrival:
    row = _parsed(line)
    if unknown := row.keys() - OUR_KEYS:
        raise Malformed(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(sorted(OUR_KEYS))}")
    arrival = Arrival(
        at=_moment(row, "at"),
        input_tokens=_counted("input_tokens", _field(row, "input_tokens")),
        output_tokens=_counted("output_tokens", _field(row, "output_tokens")),
        domain=_text(row, "domain") if "domain" in row else "",
        tier=_text(row, "tier") if "tier" in row else "",
    )
    if not row.keys() & {"prefix", "prefix_tokens"}:
        return arrival
    prefix = PromptSegment(_text(row, "prefix"), _counted("prefix_tokens", _field(row, "prefix_tokens")))
    if prefix.tokens > arrival.input_tokens:
        raise Malformed(f"prefix_tokens is {prefix.tokens}, more than the {arrival.input_tokens} input_tokens")
    return replace(arrival, shared=(prefix,))


def _parsed(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Malformed(f"holds a {type(row).__name__}, not an object")
    return row


def _field(row: Row, name: str) -> object:
    if name not in row:
        raise Malformed(f"{name} is missing")
    return row[name]


def _text(row: Row, name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise Malformed(f"{name} is {value!r:.80}; should be text")
    return value


def _moment(row: Row, name: str) -> float:
    value = _field(row, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} is {value!r:.80}; should be a number")
    try:
        moment = float(value)
    except OverflowError:
        moment = math.inf
    if not math.isfinite(moment) or moment < 0:
        raise Malformed(f"{name} is {moment}; should be 0 or more, and finite")
    return moment


def _counted(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= LONGEST_PROMPT:
        raise Malformed(f"{name} is {value!r:.80}; should be a whole number from 1 to {LONGEST_PROMPT}")
    return value


def _whole(text: str) -> int | str:
    """The number that it is, if it is one."""
    return int(text) if text.strip().isdecimal() and len(text) < 20 else text
