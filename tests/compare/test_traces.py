"""Traces as they are published, our own format there and back, and what is said of every line that is wrong."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.simulator.traces import BLOCK_TOKENS, read, write
from compare.simulator.workload import LONGEST_PROMPT, Arrival, PromptSegment, Workload, tokens_of
from engine.errors import ConfigError
from tests.compare.prompts import arrivals, at, common, prompt

# The first lines of conversation_trace.jsonl, and two that share more, of the README beside it.
MOONCAKE = """\
{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, \
24, 25, 26, 27]}
{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, \
56, 57, 2353, 2354]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, \
56, 57, 2366]}
"""
# AzureLLMInferenceTrace_code.csv, whose lines end like this, and AzureLLMInferenceTrace_code_1week.csv.
AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n2023-11-16 18:17:04.0781490,110,27"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01+00:00,2399,6\n2024-05-10 00:00:00.022314+00:00,76,15\n"
)
OURS = {"at": 1.5, "input_tokens": 30, "output_tokens": 4}

Written = Callable[[str, str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(text.encode())
        return tmp_path / name

    return file


def test_mooncake_is_read_as_published(written: Written) -> None:
    workload = read(written("mooncake_trace.jsonl", MOONCAKE))

    assert [arrival.at for arrival in workload] == [0, 0, 27.482, 30.535]
    assert [arrival.output_tokens for arrival in workload] == [500, 490, 52, 26]
    assert all(arrival.shared_tokens == arrival.input_tokens for arrival in workload)
    a, b, c, d = (tokens_of(arrival, index) for index, arrival in enumerate(workload))
    assert [len(a), len(b), len(c), len(d)] == [6758, 7322, 6955, 6472]
    assert common(a, b) == BLOCK_TOKENS
    assert common(c, d) == 12 * BLOCK_TOKENS == 6144
    assert not set(a) & set(c)


def test_azure_is_read_as_published_in_both_years(written: Written) -> None:
    old, new = read(written("code.csv", AZURE_2023)), read(written("code_1week.csv", AZURE_2024))

    assert [(a.input_tokens, a.output_tokens) for a in old] == [(4808, 10), (3180, 8), (110, 27)]
    assert [a.at for a in old] == pytest.approx([0, 0.052, 0.098189], abs=1e-9)
    assert [(a.input_tokens, a.output_tokens) for a in new] == [(2162, 5), (76, 15), (2399, 6)]
    assert [a.at for a in new] == pytest.approx([0, 0.012384, 0.99007], abs=1e-9)
    assert not any(a.shared for a in (*old, *new))


def test_the_start_of_azure_is_its_earliest_line_wherever_that_is(written: Written) -> None:
    header, *lines = AZURE_2023.split("\r\n")

    workload = read(written("code.csv", "\n".join([header, *reversed(lines)])))

    assert workload == read(written("code.csv", AZURE_2023))


def test_ours_is_read_with_all_that_it_may_say(written: Written) -> None:
    full = {**OURS, "at": 1, "domain": "code", "tier": "gold", "prefix": "repository", "prefix_tokens": 20}

    workload = read(written("own.jsonl", f"\n{json.dumps(OURS)}\n\n{json.dumps(full)}\n"))

    assert workload.arrivals == (
        Arrival(
            at=1.0,
            input_tokens=30,
            output_tokens=4,
            shared=(PromptSegment("repository", 20),),
            domain="code",
            tier="gold",
        ),
        Arrival(at=1.5, input_tokens=30, output_tokens=4),
    )


@given(st.lists(arrivals(), min_size=1, max_size=5), st.sampled_from(["one.jsonl", "one.JSONL.gz", "v1.2.jsonl.gz"]))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, given: list[Arrival], name: str
) -> None:
    file = tmp_path_factory.mktemp("written") / name
    workload = Workload(tuple(given))

    write(workload, file)

    assert read(file) == workload
    assert (file.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize(("name", "text"), [("m.jsonl", MOONCAKE), ("a.csv", AZURE_2023)])
def test_packed_files_say_the_same(tmp_path: Path, written: Written, name: str, text: str) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))

    assert read(tmp_path / f"{name}.gz") == read(written(name, text))


def test_more_than_one_stretch_is_not_written(tmp_path: Path) -> None:
    workload = Workload((prompt(PromptSegment("a", 1)), prompt(PromptSegment("a", 1), PromptSegment("b", 1))))

    with pytest.raises(ConfigError, match=r"own\.jsonl:2: would share 2 stretches"):
        write(workload, tmp_path / "own.jsonl")
    with pytest.raises(ConfigError, match=r"written as \.jsonl"):
        write(at(0), tmp_path / "own.csv")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(at(0), tmp_path / "nowhere" / "own.jsonl")
    assert list(tmp_path.iterdir()) == []


def ours(**changes: object) -> str:
    return json.dumps({key: value for key, value in {**OURS, **changes}.items() if value != "gone"})


def mooncake(**changes: object) -> str:
    line = {"timestamp": 5, "input_length": 513, "output_length": 2, "hash_ids": [1, 2], **changes}
    return json.dumps({key: value for key, value in line.items() if value != "gone"})


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{'at': 1}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[1, 2]", "holds a list, not an object"),
        (ours(at="gone"), "at is missing"),
        (ours(input_tokens="gone"), "input_tokens is missing"),
        (ours(output_tokens="gone"), "output_tokens is missing"),
        (ours(at="soon"), "at is 'soon'; should be a number"),
        (ours(at=True), "at is True"),
        (ours(at=None), "at is None"),
        (ours(at=math.nan), "at is nan; should be 0 or more, and finite"),
        (ours(at=math.inf), "at is inf"),
        (ours(at=10**400), "at is inf"),
        (ours(at=-0.5), "at is -0.5"),
        (ours(input_tokens=0), "input_tokens is 0; should be a whole number from 1"),
        (ours(input_tokens=-3), "input_tokens is -3"),
        (ours(input_tokens=LONGEST_PROMPT + 1), "input_tokens is 16777217"),
        (ours(output_tokens=2.0), "output_tokens is 2.0"),
        (ours(output_tokens=True), "output_tokens is True"),
        (ours(output_tokens=math.nan), "output_tokens is nan"),
        (ours(domain=3), "domain is 3; should be text"),
        (ours(tier=None), "tier is None; should be text"),
        (ours(prefix="a"), "prefix_tokens is missing"),
        (ours(prefix_tokens=3), "prefix is missing"),
        (ours(prefix="a", prefix_tokens=0), "prefix_tokens is 0"),
        (ours(prefix="a", prefix_tokens=31), "prefix_tokens is 31, more than the 30 input_tokens"),
        (ours(model="large", at=-1), "model: unknown; there are at, domain"),
    ],
)
def test_a_malformed_line_of_ours_is_named(written: Written, line: str, fault: str) -> None:
    file = written("own.jsonl", f"{ours()}\n\n{line}\n{ours()}\n")

    with pytest.raises(ConfigError) as raised:
        read(file)

    assert str(raised.value).startswith(f"{file}:3: {fault}")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON"),
        ('"text"', "holds a str"),
        (mooncake(timestamp="gone"), "timestamp is missing"),
        (mooncake(input_length="gone"), "input_length is missing"),
        (mooncake(output_length="gone"), "output_length is missing"),
        (mooncake(hash_ids="gone"), "hash_ids is missing"),
        (mooncake(timestamp="5"), "timestamp is '5'"),
        (mooncake(timestamp=-5), "timestamp is -5.0"),
        (mooncake(timestamp=math.nan), "timestamp is nan"),
        (mooncake(input_length=0, hash_ids=[]), "input_length is 0"),
        (mooncake(output_length=0), "output_length is 0"),
        (mooncake(output_length=-1), "output_length is -1"),
        (mooncake(hash_ids=7), "hash_ids should be a list of whole numbers"),
        (mooncake(hash_ids=[1, "2"]), "hash_ids should be a list of whole numbers"),
        (mooncake(hash_ids=[1]), "1 hash_ids for input_length 513; should be 2"),
        (mooncake(hash_ids=[1, 2, 3]), "3 hash_ids for input_length 513; should be 2"),
        (mooncake(input_length=512), "2 hash_ids for input_length 512; should be 1"),
    ],
)
def test_a_malformed_line_of_mooncake_is_named(written: Written, line: str, fault: str) -> None:
    file = written("trace.jsonl", f"{mooncake()}\n{line}\n")

    with pytest.raises(ConfigError) as raised:
        read(file)

    assert str(raised.value).startswith(f"{file}:2: {fault}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2023-11-16 18:17:03.9799600,4808", "has 2 fields; should be 3"),
        ("2023-11-16 18:17:03.9799600,4808,10,1", "has 4 fields"),
        ("16/11/2023 18:17,4808,10", "TIMESTAMP is '16/11/2023 18:17'"),
        (",4808,10", "TIMESTAMP is ''"),
        ("2023-11-16 18:17:03.9799600,0,10", "ContextTokens is 0"),
        ("2023-11-16 18:17:03.9799600,-4,10", "ContextTokens is '-4'"),
        ("2023-11-16 18:17:03.9799600,nan,10", "ContextTokens is 'nan'"),
        ("2023-11-16 18:17:03.9799600,4808,0", "GeneratedTokens is 0"),
        ("2023-11-16 18:17:03.9799600,4808,1.5", "GeneratedTokens is '1.5'"),
        ("2023-11-16 18:17:03.9799600,4808,", "GeneratedTokens is ''"),
    ],
)
def test_a_malformed_line_of_azure_is_named(written: Written, line: str, fault: str) -> None:
    file = written("code.csv", f"{AZURE_2023}\r\n{line}")

    with pytest.raises(ConfigError) as raised:
        read(file)

    assert str(raised.value).startswith(f"{file}:5: {fault}")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("none.jsonl", "", "the trace is empty"),
        ("none.jsonl", "\n \n", "the trace is empty"),
        ("none.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "the trace is empty"),
        ("images.csv", "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n", "the columns are 'TIMESTAMP,NumImages"),
        ("notes.txt", "{}", r"a trace is a \.jsonl or a \.csv file"),
        ("first.jsonl", "{", "first.jsonl:1: not JSON"),
        ("plain.jsonl.gz", "{}", "cannot be read"),
        ("latin.jsonl", "\udcff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, name: str, text: str, fault: str) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(ConfigError, match=fault) as raised:
        read(tmp_path / name)

    assert str(raised.value).startswith(str(tmp_path / name))


def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(MOONCAKE.encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ConfigError, match=r"cut\.jsonl\.gz: cannot be read"):
        read(tmp_path / "cut.jsonl.gz")
    with pytest.raises(ConfigError, match=r"gone\.csv: no such file"):
        read(tmp_path / "gone.csv")
