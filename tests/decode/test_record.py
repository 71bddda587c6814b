"""Tests that steps are recorded in order, with rounded values, and that a slow disk drops records, not time."""

import json
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decode import record
from decode.batch import StepLoad
from decode.record import FileRecorder, Header, NoRecorder, StepRecord, read
from decode.step_result import StepResult, StepTimestamps
from engine.drafters import DraftBlock
from engine.errors import ConfigError
from engine.types import SampledToken
from local import Pair
from tests.drafters import save_random_drafter
from tests.local.rig import request
from tests.local.test_speculation import pair_config

HEADER = Header(
    pool="default",
    agent="default-1",
    started="2026-01-01T00:00:00+00:00",
    device="cpu",
    threads=1,
    planner="causal",
    block_length=2,
    synthetic=False,
    target={"weights": "w"},
    drafter=None,
)


def step(began: float = 1.0, confidence: list[list[float]] | None = None) -> StepResult:
    """Two requests with two drafts each, of which the second can use one."""
    batch: Any = SimpleNamespace(sequences=[SimpleNamespace(num_cached=n) for n in (10, 30)])
    load = StepLoad(["a", "b"], [2, 1], 20)
    known = None if confidence is None else torch.tensor(confidence)
    block = DraftBlock(torch.zeros(2, 2, dtype=torch.int64), None, known)
    tokens = [[SampledToken(1, 0.0), SampledToken(2, 0.0)], [SampledToken(3, 0.0)]]
    timestamps = StepTimestamps(began, began + 0.25, began + 0.5, began + 1.5)
    return StepResult(batch, load, block, [2, 1], tokens, timestamps)


def test_a_step_is_read_back_as_it_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.jsonl"
    recorder = FileRecorder(file, HEADER)
    recorder.observe(step(1.0, [[0.9, 0.5], [0.1234567, 1.0]]))
    recorder.observe(step(2.5))
    recorder.close()

    header, steps = read(file)

    assert header == HEADER
    first = StepRecord(
        began=1.0,
        draft_seconds=0.25,
        plan_seconds=0.25,
        verify_seconds=1.0,
        requests=["a", "b"],
        positions=[10, 30],
        lengths=[2, 1],
        accepted=[1, 0],
        confidence=[[0.9, 0.5], [0.12346, 1.0]],
        survival=[[0.9, 0.45], [0.12346, 0.0]],
    )
    second = StepRecord(**{**vars(first), "began": 2.5, "confidence": [], "survival": [[1.0, 1.0], [1.0, 0.0]]})
    assert [*steps] == [first, second]


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    recorder = FileRecorder(file, HEADER)
    for began in (1.0, 2.0, 3.0):
        recorder.observe(step(began))
    recorder.close()
    whole = file.read_bytes()

    for cut in (1, 2, 30):
        file.write_bytes(whole[:-cut])
        assert [one.began for one in read(file)[1]] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "a.jsonl:1: is no sparkpool-steps-1 file"),
        ('{"format": "other"}\n', "a.jsonl:1: is no sparkpool-steps-1 file"),
        (json.dumps(vars(HEADER)) + "\n{]\n{}\n", "a.jsonl:2: "),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)

    with pytest.raises(ValueError, match=complaint):
        [*read(file)[1]]


def test_a_stalled_disk_drops_records_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_WAITING", 3)
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.001)
    recorder: Any = FileRecorder(tmp_path / "a.jsonl", HEADER)
    moves, stuck = threading.Event(), threading.Event()
    flush = recorder._output.flush

    def flush_in_the_end() -> None:
        stuck.set()
        moves.wait(30)
        flush()

    recorder._output = SlowFile(recorder._output, flush_in_the_end)
    recorder.observe(step(0.0))
    assert stuck.wait(30)
    recorder._waiting.queue.clear()
    for began in range(1, 9):
        recorder.observe(step(began))
    moves.set()
    while recorder._waiting.qsize():
        pass
    recorder.observe(step(9.0))
    recorder.observe(step(10.0))
    recorder.close()

    _, steps = read(tmp_path / "a.jsonl")
    assert [(one.began, one.lost) for one in steps][-4:] == [(2.0, 0), (3.0, 0), (9.0, 5), (10.0, 0)]


class SlowFile:
    """A file that is flushed by another function."""

    def __init__(self, file: Any, flush: Any) -> None:
        self.file, self.flush = file, flush

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_queued_records_are_written_without_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.001)
    recorder = FileRecorder(tmp_path / "a.jsonl", HEADER)
    recorder.observe(step())
    until = threading.Event()
    for _ in range(1000):
        if (tmp_path / "a.jsonl").read_text().count("\n") == 2:
            break
        until.wait(0.01)

    assert len([*read(tmp_path / "a.jsonl")[1]]) == 1
    recorder.close()


def test_a_replica_records_every_step_it_takes(qwen3: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(qwen3, tmp_path / "drafter")
    config = pair_config(qwen3, drafter, {"fixed_drafts": 3, "record": tmp_path / "steps"})
    pair = Pair(config)
    recorder: Any = pair.decoder._recorder

    pair.generate([request(f"r{i}", tokens=20 + i, max_tokens=20 + i) for i in range(3)])
    recorder.close()

    stats = pair.decoder.stats()
    header, steps = read(tmp_path / "steps" / f"{stats.identity.agent}.jsonl")
    records = [*steps]
    assert (header.pool, header.agent, header.block_length) == ("default", stats.identity.agent, 5)
    assert header.target == pair.builder.fingerprint
    assert header.drafter == pair.builder.drafter_fingerprint
    assert len(records) == stats.counters.steps
    assert sum(sum(one.lengths) for one in records) == stats.counters.verified
    assert sum(sum(one.accepted) for one in records) == stats.counters.accepted
    assert sum(one.draft_seconds for one in records) == pytest.approx(
        stats.counters.draft_seconds, abs=1e-6 * stats.counters.steps
    )
    for name in ("r0", "r1", "r2"):
        mine = [(one, one.requests.index(name)) for one in records if name in one.requests]
        first, i = mine[0]
        assert first.positions[i] == 20 + int(name[1])
        for (one, a), (after, b) in pairwise(mine):
            assert after.positions[b] == one.positions[a] + one.accepted[a] + 1
            assert len(one.confidence[a]) == len(one.survival[a]) == max(one.lengths), "as many as are used"


def test_nothing_is_written_without_a_directory(qwen3: Path) -> None:
    assert isinstance(Pair(pair_config(qwen3, None)).decoder._recorder, NoRecorder)


def test_a_directory_that_cannot_be_created_is_named_at_start(qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("a file")

    with pytest.raises(ConfigError, match=r"decode\.default\.record: .*steps"):
        Pair(pair_config(qwen3, None, {"record": tmp_path / "steps"}))
