"""`sparkpool bench --endpoint` where something goes wrong: limits, refusals, broken answers, mistakes of the user."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.cluster.endpoints import KEY, WHOLE, Handler, Measured, bench, chunk, refusing, serving, streaming, usage


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"retry_after": "0.2"}, 0.2),
        (503, {"retry_after": "0.2"}, 0.2),
        (429, {"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        (429, {}, 1.0),
    ],
)
def test_a_throttled_request_waits_as_long_as_the_server_asks(
    tmp_path: Path, status: int, headers: dict[str, str], wait: float
) -> None:
    """Without the header, a second before the second try."""
    with serving(refusing(status, **headers), streaming(*WHOLE, gap=0.01)) as server:
        measured = Measured(server, tmp_path, "--rate", "10")

    record, waited = measured.record, server.times[1] - server.times[0]
    assert wait <= waited < wait + 0.9
    assert (record.ok, record.throttled) == (True, 1)
    assert record.throttled_seconds >= wait
    assert record.sent >= wait, "TTFT counts from the sending that was answered"
    figures = measured.content["summary"]
    assert figures["latency"]["scheduled_ttft"]["mean"] >= wait + record.ttft
    late = figures["latency"]["late"]["mean"]
    assert late == pytest.approx(record.sent - record.throttled_seconds), "the client was not late: it was not let in"
    assert figures["seconds"] >= wait
    assert figures["throttled"] == {"requests": 1, "times": 1, "seconds": record.throttled_seconds}
    assert "1 requests were throttled 1 times" in measured.done.output


def test_a_date_to_retry_after_is_respected(tmp_path: Path) -> None:
    until = int(time.time()) + 1

    with serving(refusing(429, retry_after=formatdate(until, usegmt=True)), streaming(*WHOLE)) as server:
        measured = Measured(server, tmp_path)
        second = time.time() - (time.monotonic() - server.times[1])

    assert measured.record.ok
    assert until <= second < until + 2


def test_a_date_is_read_by_the_clock_of_the_server(tmp_path: Path) -> None:
    now = time.time() + 86_400
    dates = {"date": formatdate(now, usegmt=True), "retry_after": formatdate(now + 1, usegmt=True)}

    with serving(refusing(429, **dates), streaming(*WHOLE)) as server:
        assert Measured(server, tmp_path).record.ok

    assert 1.0 <= server.times[1] - server.times[0] < 2


def test_a_request_gives_up_after_ten_tries(tmp_path: Path) -> None:
    with serving(refusing(429, "slow down", retry_after="0.01")) as server:
        measured = Measured(server, tmp_path)

    status, details = measured.failure
    assert (status, len(server.asked), measured.record.throttled) == ("RESOURCE_EXHAUSTED", 10, 10)
    assert "slow down" in details


def test_a_wait_of_a_day_is_a_refusal(tmp_path: Path) -> None:
    with serving(refusing(429, "daily quota", retry_after="86400")) as server:
        status, details = Measured(server, tmp_path).failure

    assert (status, len(server.asked)) == ("RESOURCE_EXHAUSTED", 1)
    assert "asks to wait for 86400 s; HTTP 429: daily quota" in details


def test_the_key_is_sent_as_bearer_and_printed_nowhere(tmp_path: Path) -> None:
    """Not even by a server that repeats it."""
    with serving(streaming(*WHOLE), refusing(401, f"{KEY} is no key")) as server:
        measured = Measured(server, tmp_path, "--concurrency", "1", requests=2)

    assert [headers["Authorization"] for *_, headers in server.asked] == [f"Bearer {KEY}"] * 2
    assert measured.records[1].details == "HTTP 401: [key] is no key"
    assert KEY not in measured.text + measured.done.output + measured.done.stderr


@pytest.mark.parametrize(
    ("answer", "status", "details"),
    [
        (refusing(400, "max_tokens is too large"), "INVALID_ARGUMENT", "HTTP 400: max_tokens is too large"),
        (refusing(401, "who are you"), "UNAUTHENTICATED", "HTTP 401: who are you"),
        (refusing(403), "PERMISSION_DENIED", "HTTP 403"),
        (refusing(404), "NOT_FOUND", "HTTP 404"),
        (refusing(500, "x" * 999), "INTERNAL", "x" * 200 + "..."),
        (refusing(503), "UNAVAILABLE", "HTTP 503"),
        (refusing(307, location="http://127.0.0.1:1/"), "UNKNOWN", "HTTP 307"),
        (streaming(*WHOLE[:3]), "UNAVAILABLE", "the stream ended before [DONE]"),
        (streaming(*WHOLE[:4], broken=True), "UNAVAILABLE", "ClientPayloadError"),
        (streaming(*WHOLE[:3], {"error": {"message": "lost a GPU"}}, "[DONE]"), "INTERNAL", "stream: lost a GPU"),
        (streaming({"error": {"message": "full", "code": 429}}, *WHOLE), "RESOURCE_EXHAUSTED", "stream: full"),
        (streaming({"object": "error", "message": "bad", "code": 400}), "INVALID_ARGUMENT", "stream: bad"),
        (streaming(*WHOLE[:2], '{"choices": [', *WHOLE[2:]), "INTERNAL", "malformed JSON in a chunk: Expecting"),
        (streaming(*WHOLE[:2], "[1]", *WHOLE[2:]), "INTERNAL", "a chunk is not a JSON object"),
        (streaming(*WHOLE[:2], chunk("", "abort"), usage(1, 1), "[DONE]"), "ABORTED", "finish_reason is 'abort'"),
        (streaming(*WHOLE[:4], "[DONE]"), "NO_USAGE", "no usage"),
        (streaming(chunk(), usage(3, 0), "[DONE]"), "EMPTY", ""),
    ],
)
def test_every_failure_has_a_status(tmp_path: Path, answer: Handler, status: str, details: str) -> None:
    with serving(answer) as server:
        failure = Measured(server, tmp_path).failure

    assert failure[0] == status
    assert details.removesuffix("...") in failure[1]
    assert len(failure[1]) <= 303
    assert len(server.asked) == 1, "none of these is worth another try"


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with serving(streaming(*WHOLE)) as server:
        pass

    assert Measured(server, tmp_path).failure[0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--decode-pool", "a"], "--decode-pool: cannot be used with --endpoint"),
        (["--service-tier", "a"], "--service-tier: cannot be used with --endpoint"),
        (["--record", "a"], "--record: cannot be used with --endpoint"),
        (["--application", "sparkpool"], "--application: cannot be used with --endpoint"),
        (["--address", "127.0.0.1:9000"], "--address: cannot be used with --endpoint"),
        (["--model", ""], "--model: an endpoint needs the name of a model"),
        (["--api", "responses"], "--api: 'responses' is none of chat, completions"),
        (["--endpoint", "ftp://host"], "--endpoint: must be like https://host/v1"),
        (["--endpoint", "http://host:port"], "--endpoint: must be like https://host/v1"),
        (["--endpoint", "https://u:secret@host/v1"], "--endpoint: must have no user"),
        (["--endpoint", "https://host/v1?key=secret"], "--endpoint: must have no user"),
        (["--key-file", "nowhere"], "--key-file nowhere: No such file"),
        (["--key-file", "TWO"], "two: must hold one key"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: there is no such directory"),
        (["--tokenizer", "EMPTY"], "empty: no tokenizer that can be loaded"),
        (["--prompts", "IDS"], "ids.jsonl: line 2: prompt is token ids; an endpoint takes them with --api completions"),
        (["--tokenizer", "x", "--prompts", "IDS"], "--tokenizer and --prompts"),
    ],
)
def test_mistakes_end_with_one_line_before_anything_is_sent(tmp_path: Path, words: list[str], complaint: str) -> None:
    two, ids = tmp_path / "two", tmp_path / "ids.jsonl"
    two.write_text("secret one\n")
    ids.write_text('{"prompt": "fine"}\n{"prompt": [1, 2]}\n')
    (empty := tmp_path / "empty").mkdir()
    files = {"TWO": str(two), "IDS": str(ids), "EMPTY": str(empty)}

    with serving(streaming(*WHOLE)) as server:
        done = bench("--endpoint", server.url, "--model", "m", *(files.get(word, word) for word in words))

    assert (done.exit_code, server.asked) == (1, [])
    assert complaint in done.stderr
    assert "secret" not in done.output + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["--model", "m"], ["--api", "chat"], ["--key-file", "a"], ["--tokenizer", "a"]])
def test_options_of_an_endpoint_need_one(words: list[str]) -> None:
    done = bench(*words)

    assert (done.exit_code, done.stderr.strip()) == (1, f"sparkpool: {words[0]}: needs --endpoint")
