"""`sparkpool bench` against a real service."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.loadgen.load import RequestRecord
from cluster.loadgen.report import summary
from tests.cluster.conftest import Service

ROOT = Path(__file__).parents[2]
LENGTHS = ("--input-tokens", "20", "--output-tokens", "6")


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "200"})


def at(service: Service) -> tuple[str, ...]:
    return ("--address", f"127.0.0.1:{service.port}", "--application", service.name)


def measured(service: Service, file: Path, *words: str) -> tuple[Result, dict[str, Any], list[RequestRecord]]:
    """The command's result, its JSON, and the JSON's requests as records again."""
    done = bench(*at(service), "--json", str(file), *words)
    content = json.loads(file.read_text())
    return done, content, [RequestRecord(**request) for request in content["requests"]]


def test_a_closed_loop_measures_every_request(shipped: Service, tmp_path: Path) -> None:
    words = ("--concurrency", "3", "--requests", "7", "--warmup", "2", *LENGTHS)

    done, content, records = measured(shipped, tmp_path / "a.json", *words)

    assert done.exit_code == 0, done.output
    assert [r.output_tokens for r in records] == [6] * 7
    assert [r.prompt_tokens for r in records] == [20] * 7
    assert {r.finish_reason for r in records} == {"FINISH_REASON_LENGTH"}
    assert max(sum(r.sent <= one.sent < r.ended for r in records) for one in records) == 3
    for r in records:
        times = [r.sent, *(moment for moment, _ in r.messages), r.ended]
        assert times == sorted(times)
        assert r.timings["total_seconds"] <= r.e2e
    assert content["config"]["concurrency"] == 3
    assert content["summary"]["moved_bytes"] > 0
    shipped.assert_idle_and_consistent()


def test_the_summary_follows_from_the_raw_times(shipped: Service, tmp_path: Path) -> None:
    done, content, records = measured(shipped, tmp_path / "a.json", "--requests", "4", *LENGTHS)

    again = summary(records, content["summary"]["client_cpu_seconds"])

    assert json.loads(json.dumps(again)) == content["summary"]
    assert content["summary"]["speculation"] is None, "nothing drafts here"
    assert {r.acceptance["steps"] for r in records} == {5}
    for name in ("TTFT", "TPOT", "ITL", "end to end", "output tok/s", "KV moved"):
        assert name in done.output


def test_an_open_loop_sends_when_requests_are_due(shipped: Service, tmp_path: Path) -> None:
    words = ("--rate", "20", "--burstiness", "inf", "--requests", "8", *LENGTHS)

    done, content, records = measured(shipped, tmp_path / "a.json", *words)

    assert done.exit_code == 0, done.output
    assert [r.scheduled for r in records] == pytest.approx([i / 20 for i in range(8)])
    assert all(r.late_seconds >= 0 for r in records)
    assert "TTFT since due" in done.output
    assert content["summary"]["latency"]["scheduled_ttft"]["p50"] >= content["summary"]["latency"]["ttft"]["p50"]


def test_prompts_come_from_a_file_and_failures_are_counted(shipped: Service, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    entries = [{"prompt": "import os", "max_tokens": 3}, {"prompt": [5, 6, 7]}, {"prompt": "x", "max_tokens": 10**6}]
    prompts.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    words = ("--prompts", str(prompts), "--output-tokens", "2", "--ignore-eos")
    done, _, records = measured(shipped, tmp_path / "a.json", *words)

    assert done.exit_code == 0, done.output
    assert [r.output_tokens for r in records] == [3, 2, 0]
    assert [r.status for r in records] == ["OK", "OK", "INVALID_ARGUMENT"]
    assert "2 of 3 requests completed" in done.output
    assert "failed: 1 INVALID_ARGUMENT" in done.output


def test_a_run_in_which_everything_failed_has_failed(shipped: Service, tmp_path: Path) -> None:
    done = bench(*at(shipped), "--requests", "2", "--top-p", "7", *LENGTHS)

    assert done.exit_code == 1
    assert "failed: 2 INVALID_ARGUMENT" in done.output


def test_an_interrupted_run_prints_its_figures_so_far(shipped: Service, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    command = [sys.executable, "-m", "cluster.cli", "bench", *at(shipped), "--seconds", "100", "--json", str(file)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ})
    until = time.monotonic() + 60
    while sum(replica.counters.requests for replica in shipped.client.stats().replicas if replica.running) < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)

    output, _ = running.communicate(timeout=30)

    assert running.returncode == 130
    assert "requests completed" in output
    assert any(request["status"] == "CANCELLED" for request in json.loads(file.read_text())["requests"])
    shipped.assert_idle_and_consistent()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--address", "127.0.0.1:1"], "127.0.0.1:1: UNAVAILABLE"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--requests", "1", "--seconds", "1"], "--requests and --seconds"),
        (["--concurrency", "0"], "--concurrency: must be above 0, is 0"),
        (["--rate", "nan"], "--rate: must be above 0, is nan"),
        (["--json", "nowhere/a.json"], "--json nowhere/a.json"),
    ],
)
def test_mistakes_end_with_one_line(words: list[str], complaint: str) -> None:
    done = bench(*words)

    assert done.exit_code == 1
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_malformed_line_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')

    done = bench("--prompts", str(prompts), "--address", "127.0.0.1:1")

    assert done.exit_code == 1
    assert "line 2: prompt must be text or a list of token ids" in done.stderr
