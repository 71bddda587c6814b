"""What `sparkpool bench --endpoint` sends, and what it makes of the answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster.loadgen.chunks import events
from cluster.loadgen.load import RequestRecord
from cluster.loadgen.report import as_json, summary
from cluster.loadgen.run import BenchOptions
from compare.study.measured import run_of
from compare.study.scenario import WorkloadSection
from engine.config import SHIPPED_MODEL
from engine.errors import ConfigError
from engine.text import Text
from tests.cluster.endpoints import WHOLE, Measured, chunk, serving, streaming, usage


def test_tokens_are_those_that_usage_counts_and_times_those_of_chunks(tmp_path: Path) -> None:
    """Seven tokens came in two chunks."""
    cached = usage(11, 7, prompt_tokens_details={"cached_tokens": 4})
    with serving(streaming(*WHOLE[:-2], cached, "[DONE]", gap=0.03)) as server:
        measured = Measured(server, tmp_path)

    record, figures = measured.record, measured.content["summary"]
    assert measured.done.exit_code == 0, measured.done.output
    assert (record.status, record.finish_reason) == ("OK", "length")
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (11, 4, 7)
    assert [tokens for _, tokens in record.messages] == [0, 1, 6, 0, 0]
    first, last = record.token_times
    assert record.ttft == pytest.approx(first - record.sent)
    assert record.tpot == pytest.approx((last - first) / 6)
    assert record.ttft >= 0.03 <= record.itl[0]
    assert (figures["mean_prompt_tokens"], figures["mean_output_tokens"]) == (11, 7)
    assert (figures["cached_tokens"], figures["messages"]) == (4, 2)


def test_fewer_tokens_than_chunks_keep_the_first_and_the_last_time(tmp_path: Path) -> None:
    with serving(streaming(*(chunk(word) for word in "abcde"), usage(1, 2), "[DONE]")) as server:
        record = Measured(server, tmp_path).record

    assert [tokens for _, tokens in record.messages] == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "delta",
    [{"content": "a"}, {"reasoning_content": "a"}, {"reasoning": "a"}, {"tool_calls": [{"function": {"name": "f"}}]}],
)
def test_a_chunk_with_anything_of_the_answer_has_tokens(tmp_path: Path, delta: dict[str, Any]) -> None:
    with serving(streaming({"choices": [{"delta": delta}]}, chunk("", "stop"), usage(1, 1))) as server:
        record = Measured(server, tmp_path).record

    assert (record.status, [tokens for _, tokens in record.messages]) == ("OK", [1, 0, 0])


def test_the_times_that_vendors_tell_are_kept_and_summarised(tmp_path: Path) -> None:
    cerebras = {"queue_time": 0.25, "prompt_time": 0.5, "completion_time": 1.0, "total_time": 2.0, "created": 1.8e9}
    groq = {"queue_time": 0.75, "prompt_time": 0.5, "completion_time": 1.0, "total_time": 2.5}
    first = streaming(*WHOLE[:-2], {**usage(3, 4), "time_info": cerebras})
    second = streaming(*WHOLE[:-2], usage(3, 4, **groq))
    third = streaming(*WHOLE[:-2], {"choices": [], "x_groq": usage(3, 4, **groq)})
    with serving(first, second, third) as server:
        measured = Measured(server, tmp_path, "--concurrency", "1", requests=3)

    times = measured.content["summary"]["vendor_times"]
    assert [record.vendor_times for record in measured.records] == [cerebras, groq, groq]
    assert [record.output_tokens for record in measured.records] == [4, 4, 4]
    assert set(times) == {"queue_time", "prompt_time", "completion_time", "total_time"}, "created is no duration"
    assert times["queue_time"]["p50"] == 0.75
    assert "the server's queue_time" in measured.done.output


def test_only_fields_that_every_server_accepts_are_sent_by_default(tmp_path: Path) -> None:
    always = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 3, "ignore_eos": True, "max_tokens": 9}
    words = ("--temperature", "0.5", "--top-p", "0.9", "--top-k", "5", "--sampling-seed", "3", "--ignore-eos")
    with serving(streaming(*WHOLE)) as server:
        Measured(server, tmp_path)
        server.url += "/v1/"
        Measured(server, tmp_path, "--output-tokens", "9", "--api", "completions", *words)

    chat, completion = server.bodies
    assert [path for _, path, *_ in server.asked] == ["/v1/chat/completions", "/v1/completions"]
    assert chat == {**always, "temperature": 0.0, "messages": [{"role": "user", "content": "one prompt"}]}
    assert completion == {**always, **asked, "prompt": "one prompt"}


def test_completions_take_token_ids_and_answer_with_text(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": [5, 6], "max_tokens": 2}\n')
    with serving(
        streaming({"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}, usage(2, 2), "[DONE]")
    ) as server:
        measured = Measured(server, tmp_path, "--prompts", str(prompts), "--api", "completions")

    assert server.bodies[0]["prompt"] == [5, 6]
    assert [tokens for _, tokens in measured.record.messages] == [1, 1, 0]


def test_random_prompts_are_words_of_about_so_many_tokens(tmp_path: Path) -> None:
    words = ("--input-tokens", "40", "--prefix-tokens", "10", "--output-tokens", "5", "--warmup", "1")
    with serving(streaming(*WHOLE)) as server:
        Measured(server, tmp_path, *words, requests=3)

    prompts = [body["messages"][0]["content"] for body in server.bodies]
    text = Text.load(SHIPPED_MODEL)
    assert len(set(prompts)) == 4, "the warm-up's is another"
    assert all(len(text.encode(prompt)) == pytest.approx(50, abs=1) for prompt in prompts)
    assert len({tuple(prompt.split()[:10]) for prompt in prompts[1:]}) == 1
    assert {body["max_tokens"] for body in server.bodies} == {5}
    assert not any("ignore_eos" in body for body in server.bodies)


def test_as_many_streams_as_asked_for_are_under_way(tmp_path: Path) -> None:
    """More than the 100 that the HTTP client would keep by itself."""

    async def together(request: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(10):
            while len(server.asked) < 120:
                await asyncio.sleep(0.01)
        return await streaming(*WHOLE)(request)

    with serving(together) as server:
        records = Measured(server, tmp_path, "--concurrency", "120", requests=120).records

    assert all(record.ok for record in records)


def test_the_json_has_the_form_of_our_own(tmp_path: Path) -> None:
    with serving(streaming(*WHOLE)) as server:
        theirs = Measured(server, tmp_path).content
    record = RequestRecord(
        index=0, scheduled=None, sent=0.0, messages=[(1.0, 1)], ended=1.0, status="OK", prompt_tokens=3
    )
    ours = as_json(vars(BenchOptions(address="a", application="b")), "now", [record], summary([record]))

    assert (ours["kind"], theirs["kind"]) == ("sparkpool", "endpoint")
    assert theirs["config"] | {"endpoint": server.url, "model": "m", "api": "chat", "address": ""} == theirs["config"]
    assert keys(theirs) == keys(ours)
    assert keys(theirs["summary"]["latency"]) == keys(ours["summary"]["latency"])
    for part in ("config", "summary"):
        assert keys(theirs[part]) == keys(ours[part])
    assert keys(theirs["requests"][0]) == keys(ours["requests"][0])
    assert ours["summary"]["mean_prompt_tokens"] == 3


def keys(of: dict[str, Any]) -> list[str]:
    return sorted(of)


def test_a_scenario_takes_the_file_of_an_endpoint(tmp_path: Path) -> None:
    with serving(streaming(*WHOLE, gap=0.01)) as server:
        measured = Measured(server, tmp_path)
    assert measured.done.exit_code == 0, measured.done.output

    run = run_of(measured.file, WorkloadSection(input_tokens=11, output_tokens=7))

    assert run.user_rate == pytest.approx(1 / measured.content["summary"]["latency"]["tpot"]["mean"])
    assert run.ttft["50"] >= 0.01
    assert run.emulated == ""
    with pytest.raises(ConfigError, match="another workload"):
        run_of(measured.file, WorkloadSection(input_tokens=11, output_tokens=70))


def test_events_are_put_together_from_any_pieces() -> None:
    stream = b': hello\r\n\r\nevent: x\r\ndata: {"a":\r\ndata:1}\r\n\r\ndata: two\n\ndata: cut off\n'

    async def pieces(size: int) -> list[bytes]:
        async def cut() -> Any:
            for start in range(0, len(stream), size):
                yield stream[start : start + size]

        return [data async for data in events(cut())]

    for size in (1, 3, len(stream)):
        assert asyncio.run(pieces(size)) == [b'{"a":\n1}', b"two"]
