"""What every decode step did, in a file: for calibrating confidences and for simulating other plans.

A replica writes one file of JSON lines, AGENT.jsonl. Its first line is a `Header`; every other line is a `StepRecord`,
a step of R requests for which K drafts each had been made:

    began            seconds on the replica's clock; only differences mean anything
    draft_seconds    making the drafts; on CUDA see decode/schedule.py: StepTimestamps
    plan_seconds     deciding how many to verify
    verify_seconds   from the plan to the tokens on the host
    requests     R   names, which tell requests apart from step to step
    positions    R   of the last token said, from which the step goes on: so many tokens are in pages
    lengths      R   drafts put before the target
    accepted     R   those of them that it accepted, also beyond the end of an answer; it then gave one token more
    confidence  RK   the drafter's P(draft accepted | those before it were); [] if it has none
    survival    RK   their products, P(draft reached and accepted); 0 where a request has no use for a draft
    lost             steps before this one that are missing, because the disk was too slow

Probabilities have 5 decimals, times 7. A replica that is killed leaves a last line that may be cut off, and what it did
in the last WRITE_SECONDS is missing.
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
from decode.schedule import Step

logger = logging.getLogger("sparkpool")
FORMAT = "sparkpool-steps-1"
WRITE_SECONDS = 0.5
MOST_WAITING = 10_000  # steps, for a disk that has stopped: some tens of megabytes


@dataclass(frozen=True, kw_only=True)
class Header:
    """Whose steps these are. Fingerprints as in a handoff; `started` is UTC, ISO 8601; `temperatures` are those that
    confidences were calibrated with, by place."""

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
    """One line; the fields are explained above."""

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
    def of(cls, step: Step, lost: int = 0) -> "StepRecord":
        timestamps, demand, confidence_RK = step.timestamps, step.batch.demand(), step.block.confidence_RK
        return cls(
            began=round(timestamps.began, 7),
            draft_seconds=round(timestamps.draft_seconds, 7),
            plan_seconds=round(timestamps.plan_seconds, 7),
            verify_seconds=round(timestamps.verify_seconds, 7),
            requests=list(demand.names),
            positions=[sequence.num_cached for sequence in step.batch.sequences],
            lengths=list(step.lengths),
            accepted=[len(drawn) - 1 for drawn in step.drawn],
            confidence=[] if confidence_RK is None else _rounded(confidence_RK),
            survival=_rounded(survival(step.block, demand.most)),
            lost=lost,
        )


def _rounded(values_RK: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in values_RK.tolist()]


class Recorder(Protocol):
    @property
    def file(self) -> Path | None:
        """Where steps are written; None if they are not."""
        ...

    def record(self, step: Step) -> None:
        """Take note of a step before its tokens are committed. Never waits."""
        ...

    def close(self) -> None:
        """Keep what was noted, and end."""
        ...


class NoRecorder:
    """Nothing is written."""

    file = None

    def record(self, step: Step) -> None:
        pass

    def close(self) -> None:
        pass


class FileRecorder:
    """Writes the steps of one replica, in a thread of its own: it is the only one that waits for the disk."""

    def __init__(self, file: Path, header: Header) -> None:
        """Raises OSError if the file cannot be made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._output = file.open("x", encoding="utf-8")
        self._waiting: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self._waiting.put(_line(header))
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="step recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def record(self, step: Step) -> None:
        try:
            self._waiting.put_nowait(_line(StepRecord.of(step, self._lost)))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
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
        lines = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]  # nobody else takes from it
        self._output.writelines(lines)
        self._output.flush()


def _line(content: Header | StepRecord) -> str:
    return json.dumps(vars(content), separators=(",", ":")) + "\n"


def read(file: Path) -> tuple[Header, Iterator[StepRecord]]:
    """What a replica recorded. A last line that was cut off is left out. Raises ValueError, naming file and line."""
    lines = _lines(file)
    number, content = next(lines, (1, {}))
    if content.get("format") != FORMAT:
        raise ValueError(f"{file}:{number}: is no {FORMAT} file")
    return Header(**content), (StepRecord(**content) for _, content in lines)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the content of each whole line."""
    with file.open(encoding="utf-8") as text:
        for number, line in enumerate(text, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from error
