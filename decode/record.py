"""Records of every decode step in a file, for calibrating confidences and for simulating other plans.

A replica writes one file of JSON lines, AGENT.jsonl. Its first line is a `Header`; every other line is a `StepRecord`,
a step of R requests for each of which K drafts were made:

    began            seconds on the replica's clock; only differences mean anything
    draft_seconds    the time to make the drafts; on CUDA see decode/step_result.py: StepTimestamps
    plan_seconds     the time to decide how many to verify
    verify_seconds   the time from the plan to the tokens on the host
    requests     R   names, which identify requests across steps
    positions    R   the position of the last generated token, which is the number of tokens in pages
    lengths      R   the drafts that were verified
    accepted     R   the drafts that were accepted, those beyond the end of an output included
    confidence  RK   the drafter's P(draft accepted | those before it were); [] if it has none
    survival    RK   their products, P(draft reached and accepted); 0 beyond the drafts that a request can use
    lost             the steps before this one that are missing, because the disk was too slow

Probabilities have 5 decimals, times 7. If a replica is killed, its last line may be cut off and the steps of the last
WRITE_SECONDS are missing.
"""

import atexit
import json
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from decode.objective import survival
from decode.step_result import StepResult

logger = logging.getLogger("sparkpool")
FORMAT = "sparkpool-steps-1"
WRITE_SECONDS = 0.5
MAX_WAITING = 10_000  # steps, while the disk does not respond: some tens of megabytes


@dataclass(frozen=True, kw_only=True)
class Header:
    """The replica that recorded the steps. Fingerprints are those of a handoff; `started` is UTC, ISO 8601;
    `temperatures` are those that confidences were calibrated with, by position in the block."""

    format: str = FORMAT
    pool: str
    agent: str
    started: str
    device: str
    threads: int
    planner: str
    block_length: int
    synthetic: bool
    target: dict[str, str]
    drafter: dict[str, str] | None
    temperatures: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step; the module docstring explains the fields."""

    began: float
    draft_seconds: float
    plan_seconds: float
    verify_seconds: float
    requests: list[str]
    positions: list[int]
    lengths: list[int]
    accepted: list[int]
    confidence: list[list[float]]
    survival: list[list[float]]
    lost: int = 0

    @classmethod
    def of(cls, result: StepResult, lost: int = 0) -> "StepRecord":
        timestamps, confidence_RK = result.timestamps, result.block.confidence_RK
        return cls(
            began=round(timestamps.began, 7),
            draft_seconds=round(timestamps.draft_seconds, 7),
            plan_seconds=round(timestamps.plan_seconds, 7),
            verify_seconds=round(timestamps.verify_seconds, 7),
            requests=list(result.load.names),
            positions=[sequence.num_cached for sequence in result.batch.sequences],
            lengths=list(result.lengths),
            accepted=list(result.accepted),
            confidence=[] if confidence_RK is None else _rounded(confidence_RK),
            survival=_rounded(survival(result.block, result.load.max_drafts)),
            lost=lost,
        )


def _rounded(values_RK: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in values_RK.tolist()]


class Recorder(Protocol):
    @property
    def file(self) -> Path | None:
        """The file that steps are written to; None if they are not recorded."""
        ...

    def observe(self, result: StepResult) -> None:
        """Record a step, before its tokens are committed. Never waits."""
        ...

    def close(self) -> None:
        """Write what is still waiting, and stop."""
        ...


class NoRecorder:
    """Records nothing."""

    file = None

    def observe(self, result: StepResult) -> None:
        pass

    def close(self) -> None:
        pass


class FileRecorder:
    """Writes the steps of one replica to a file, in a thread of its own, so that decoding never waits for the disk."""

    def __init__(self, file: Path, header: Header) -> None:
        """Raises OSError if the file cannot be created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._output = file.open("x", encoding="utf-8")
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._waiting.put(_line(header))
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="step recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def observe(self, result: StepResult) -> None:
        try:
            self._waiting.put_nowait(_line(StepRecord.of(result, self._lost)))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closing.set()
        self._thread.join()

    def _write(self) -> None:
        try:
            with self._output:
                while not self._closing.wait(WRITE_SECONDS):
                    self._write_waiting()
                self._write_waiting()
        except OSError as error:
            logger.error(f"{self._output.name}: {error}; no more steps are recorded (decode.POOL.record)")

    def _write_waiting(self) -> None:
        lines = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]  # no other thread takes from it
        self._output.writelines(lines)
        self._output.flush()


def _line(content: Header | StepRecord) -> str:
    return json.dumps(vars(content), separators=(",", ":")) + "\n"


def read(file: Path) -> tuple[Header, Iterator[StepRecord]]:
    """Read a replica's file, without a last line that was cut off. Raises ValueError, naming file and line."""
    lines = _lines(file)
    number, content = next(lines, (1, {}))
    if content.get("format") != FORMAT:
        raise ValueError(f"{file}:{number}: is no {FORMAT} file")
    return Header(**content), (StepRecord(**content) for _, content in lines)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of each complete line."""
    with file.open(encoding="utf-8") as text:
        for number, line in enumerate(text, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from error
