"""The load generator without a service: workloads, schedules and figures, against what they should be by definition."""

import asyncio
import json
import math
import statistics
from collections.abc import AsyncIterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import grpc
import pytest

from cluster.loadgen.load import LoadGenerator, RequestRecord, Schedule, SendRequest
from cluster.loadgen.report import lines, summary
from cluster.loadgen.workload import Job, Lengths, arrivals, random_jobs, read_prompts
from cluster.proto import sparkpool_pb2 as pb
from engine.errors import ConfigError

TIMINGS = {"moved_bytes": 100, "transfer_seconds": 0.5}


def record(sent: float, messages: list[tuple[float, int]], ended: float, **more: object) -> RequestRecord:
    given = {"index": 0, "scheduled": None, "status": "OK", "timings": TIMINGS, **more}
    return RequestRecord(sent=sent, messages=messages, ended=ended, **given)  # type: ignore[arg-type]


def answers(count: int, seconds: float = 0.0) -> SendRequest:
    """A service that answers every job with so many tokens, one per message."""

    async def ask(job: Job) -> AsyncIterator[pb.GenerateReply]:
        for token in range(count):
            await asyncio.sleep(seconds / count)
            yield pb.GenerateReply(token_ids=[token], finish_reason=int(token == count - 1))

    return ask


def load(ask: SendRequest, schedule: Schedule, num_jobs: int) -> list[RequestRecord]:
    run = LoadGenerator(ask, schedule)
    asyncio.run(run.run([Job("x", 1)] * num_jobs))
    return sorted(run.records, key=lambda r: r.index)


def test_latencies_follow_their_definitions() -> None:
    """A message without tokens (text alone) is neither the first token nor a step."""
    r = record(10.0, [(10.1, 0), (10.5, 2), (10.7, 1), (11.3, 3), (11.4, 0)], 11.5, scheduled=9.0)

    assert r.ttft == pytest.approx(0.5)
    assert r.tpot == pytest.approx((11.3 - 10.5) / 5)
    assert r.itl == pytest.approx([0.2, 0.6])
    assert r.e2e == pytest.approx(1.5)
    assert r.late_seconds == pytest.approx(1.0)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    r = record(0.0, [(0.5, 1)], 0.6)

    assert r.tpot is None
    assert summary([r])["latency"]["tpot"] is None


def test_a_summary_counts_what_ended_well_and_names_what_did_not() -> None:
    good = [record(1.0, [(2.0, 1), (3.0, 3)], 3.0), record(2.0, [(2.5, 2)], 6.0)]
    bad = record(1.5, [(1.6, 9)], 2.0, status="UNAVAILABLE", timings={})

    figures = summary([*good, bad])

    assert (figures["requests"], figures["completed"], figures["failed"]) == (3, 2, {"UNAVAILABLE": 1})
    assert figures["output_tokens_per_second"] == pytest.approx(6 / 5.0)
    assert figures["requests_per_second"] == pytest.approx(2 / 5.0)
    assert figures["tokens_per_message"] == pytest.approx(6 / 3)
    assert figures["transfer_bytes_per_second"] == pytest.approx(200 / 1.0)


def drafted(**changes: object) -> dict[str, object]:
    """What the last reply of an answer told."""
    counts = {"steps": 4, "drafted": 20, "verified": 12, "accepted": 6}
    return {**counts, "verified_at": [4, 4, 4], "accepted_at": [4, 2, 0], "synthetic": False, **changes}


def test_a_summary_adds_up_what_became_of_drafts() -> None:
    short = drafted(steps=2, drafted=10, verified=2, accepted=1, verified_at=[2], accepted_at=[1])
    nothing = drafted(steps=9, drafted=0, verified=0, accepted=0, verified_at=[], accepted_at=[])
    records = [record(0.0, [(1.0, 5)], 1.0, acceptance=one) for one in (drafted(), short, nothing, {})]
    records.append(record(0.0, [(1.0, 5)], 1.0, acceptance=drafted(), status="UNAVAILABLE"))

    figures = summary(records)

    assert figures["speculation"] == {
        "steps": 6,
        "drafted": 30,
        "verified": 14,
        "accepted": 7,
        "verified_at": [6, 4, 4],
        "accepted_at": [5, 2, 0],
        "accepted_length": 1 + 7 / 6,
        "verified_per_step": 14 / 6,
        "synthetic": False,
    }
    (line,) = [line for line in lines(figures) if "accepted length" in line]
    assert "accepted length 2.17, 2.33 drafts verified" in line
    assert line.endswith("acceptance by position 83% 50% 0%")


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_run_over_synthetic_acceptance_says_so(synthetic: bool) -> None:
    figures = summary([record(0.0, [(1.0, 5)], 1.0, acceptance=drafted(synthetic=synthetic))])

    assert any(line.startswith("SYNTHETIC ACCEPTANCE") for line in lines(figures)) == synthetic


def test_a_summary_of_nothing_has_no_figures_and_does_not_fail() -> None:
    assert summary([])["latency"]["ttft"] is None
    assert summary([])["speculation"] is None
    assert lines(summary([]))


def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for() -> None:
    """Gamma gaps of shape b have a coefficient of variation of 1 / sqrt(b); b = 1 is a Poisson process."""
    for burstiness in (0.25, 1.0, 4.0):
        gaps = [b - a for a, b in pairwise(islice(arrivals(50.0, burstiness, Random(0)), 20_000))]

        assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
        assert statistics.stdev(gaps) * 50 == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_even_arrivals_are_even_and_seeded_ones_repeat() -> None:
    assert [*islice(arrivals(4.0, math.inf, Random(0)), 4)] == [0.0, 0.25, 0.5, 0.75]
    assert [*islice(arrivals(4.0, 1.0, Random(1)), 9)] == [*islice(arrivals(4.0, 1.0, Random(1)), 9)]


def test_random_prompts_have_their_lengths_and_share_their_prefix() -> None:
    lengths = Lengths(input=20, output=10, input_spread=0.5, output_spread=0.2, prefix=7)

    jobs = [*islice(random_jobs(lengths, range(100, 200), Random(0)), 300)]

    sizes = {len(job.prompt) - 7 for job in jobs}
    assert (min(sizes), max(sizes)) == (10, 30)
    assert {job.max_tokens for job in jobs} == set(range(8, 13))
    assert len({tuple(job.prompt[:7]) for job in jobs}) == 1
    assert len({tuple(job.prompt) for job in jobs}) == 300
    assert jobs == [*islice(random_jobs(lengths, range(100, 200), Random(0)), 300)]


def test_lengths_that_do_not_fit_the_model_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"longest request has 131 tokens.*takes 130"):
        Lengths(input=64, output=64, prefix=3).check(130)


def test_prompts_come_from_lines_or_from_json(tmp_path: Path) -> None:
    text, jsonl = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("import os\n\n  two\n")
    jsonl.write_text(f"{json.dumps({'prompt': [1, 2], 'max_tokens': 3})}\n{json.dumps({'prompt': 'x'})}\n")

    assert read_prompts(text, 9) == [Job("import os", 9), Job("  two", 9)]
    assert read_prompts(jsonl, 9) == [Job([1, 2], 3), Job("x", 9)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: Expecting"),
        ("[]", 'line 2: must be an object with "prompt"'),
        ('{"prompt": ""}', "line 2: prompt is empty"),
        ('{"prompt": [1, "a"]}', "line 2: prompt must be text or a list of token ids"),
        ('{"prompt": "x", "max_tokens": 0}', "line 2: max_tokens must be a whole number"),
        ('{"prompt": "x", "max_tokens": true}', "line 2: max_tokens must be a whole number"),
        ('{"prompt": "x", "maxtokens": 1}', "line 2: 'maxtokens' is unknown"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')

    with pytest.raises(ConfigError) as caught:
        read_prompts(file)

    assert complaint in str(caught.value)


def test_a_closed_loop_keeps_so_many_under_way_and_no_more() -> None:
    records = load(answers(2, seconds=0.02), Schedule(concurrency=3), 9)

    under_way = [sum(r.sent <= at.sent < r.ended for r in records) for at in records]
    assert max(under_way) == 3
    ends = sorted(r.ended for r in records)
    assert all(ends[i - 3] <= r.sent < ends[i - 3] + 0.1 for i, r in enumerate(records) if i >= 3)
    assert [r.output_tokens for r in records] == [2] * 9


def test_an_open_loop_does_not_wait_for_other_requests() -> None:
    records = load(answers(1, seconds=0.2), Schedule(concurrency=None, due=iter([0.0, 0.02, 0.04])), 3)

    assert [r.scheduled for r in records] == [0.0, 0.02, 0.04]
    assert all(r.scheduled <= r.sent < r.scheduled + 0.1 for r in records if r.scheduled is not None)
    assert records[2].sent < records[0].ended


def test_waiting_for_a_slot_counts_from_when_the_request_was_due() -> None:
    """Coordinated omission: the second request's own latency looks fine, because it was sent late."""
    records = load(answers(1, seconds=0.1), Schedule(concurrency=1, due=iter([0.0, 0.0])), 2)

    figures = summary([RequestRecord(**{**vars(r), "timings": TIMINGS}) for r in records])

    assert records[1].late_seconds == pytest.approx(0.1, abs=0.05)
    assert figures["latency"]["scheduled_e2e"]["p99"] > 1.5 * figures["latency"]["e2e"]["p50"]
    assert any("FELL BEHIND" in line for line in lines(figures))


def test_seconds_end_the_sending_and_let_the_rest_finish() -> None:
    due = iter([0.0, 0.01, 0.02, 9.0])

    open_loop = load(answers(1, seconds=0.1), Schedule(concurrency=None, due=due, seconds=0.05), 10)
    closed_loop = load(answers(1, seconds=0.03), Schedule(concurrency=1, seconds=0.05), 10_000)

    assert len(open_loop) == 3
    assert 1 <= len(closed_loop) <= 3
    assert all(r.ok for r in (*open_loop, *closed_loop))


def test_failures_and_empty_answers_are_statuses_of_their_request() -> None:
    async def refuse(job: Job) -> AsyncIterator[pb.GenerateReply]:
        yield pb.GenerateReply(token_ids=[1])
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), details="full"
        )

    refused = load(refuse, Schedule(concurrency=1), 2)
    empty = load(answers(0), Schedule(concurrency=1), 1)

    assert [(r.status, r.details) for r in refused] == [("RESOURCE_EXHAUSTED", "full")] * 2
    assert [r.status for r in empty] == ["EMPTY"]
