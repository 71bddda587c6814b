"""The text is what the target says, written once, and never mixed up with another's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import SHIPPED_MODEL as TINY
from engine.errors import ConfigError
from engine.models import LoadedModel, load_model
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair
from train.drafter import sequences
from train.drafter.config import TextSection
from train.drafter.sequences import Sequences, Writer

TOKENS = 60


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(TINY, torch.float32, torch.device("cpu"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "def add(a, b):\n"},
        {"messages": [{"role": "user", "content": "Return the sum."}]},
        {"prompt_token_ids": [5, 6, 7]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def writer(model: LoadedModel, folder: Path, prompts: Path, **changes: object) -> Writer:
    options = {"prompts": prompts, "sequences": 7, "tokens": TOKENS, "temperatures": (0.0, 1.0), **changes}
    return Writer(model, TINY, TextSection.model_validate(options), folder)


def written(one: Writer) -> Sequences:
    return one.written(lambda done, total: None)


def test_greedy_ones_are_what_the_engine_says_by_itself(model: LoadedModel, prompts: Path, tmp_path: Path) -> None:
    text = written(writer(model, tmp_path / "text", prompts, ignore_eos=True))

    assert len(text) == 7
    assert text.first_N.tolist()[:4] == [text.first_N[0], text.first_N[1], 3, text.first_N[0]]
    assert (text.end_N == TOKENS).all()
    pair = Pair(builder_config := config(), builder=Builder(builder_config, builder_config.prefill, model))
    for number in (0, 2, 4, 6):
        tokens, first = text.tokens(number), int(text.first_N[number])
        stop = StopRules(max_tokens=TOKENS - first, ignore_eos=True)
        request = Request(id=str(number), prompt=tuple(tokens[:first]), sampling=Sampling(), stop=stop)
        assert pair.generate([request])[str(number)] == tokens[first:]
    assert text.tokens(1) != text.tokens(4)[: len(text.tokens(1))]


def config():  # type: ignore[no-untyped-def]
    from engine.config import Config

    room = {"cache_bytes": 2**24}
    return Config.parse({"model": {"path": TINY}, "prefill": room, "decode": {"default": room}})


def test_an_interrupted_call_goes_on(
    model: LoadedModel, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "PART_SEQUENCES", 3)
    whole = written(writer(model, tmp_path / "whole", prompts))
    kept: list[int] = []

    def stop(done: int, total: int) -> None:
        kept.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(model, tmp_path / "parts", prompts).written(stop)
    first = next((tmp_path / "parts").glob("text-00000.npz"))
    before = first.stat().st_mtime_ns
    again = written(writer(model, tmp_path / "parts", prompts))

    assert first.stat().st_mtime_ns == before
    assert again.digest == whole.digest


@pytest.mark.parametrize(
    ("change", "named"), [({"tokens": TOKENS + 1}, "text.tokens"), ({"temperatures": (0.5,)}, "text.temperatures")]
)
def test_text_asked_for_in_another_way_is_not_taken(
    model: LoadedModel, prompts: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    written(writer(model, tmp_path / "text", prompts))
    with pytest.raises(ConfigError, match=named):
        written(writer(model, tmp_path / "text", prompts, **change))


def test_text_of_another_target_is_not_taken(model: LoadedModel, prompts: Path, tmp_path: Path) -> None:
    written(writer(model, tmp_path / "text", prompts))
    other = load_model(TINY, torch.bfloat16, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"target\.dtype was 'float32'"):
        written(writer(other, tmp_path / "text", prompts))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "2: not JSON"),
        ('{"text": "x"}', "2: has none of prompt"),
        ('{"prompt_token_ids": [4096]}', "2: has none of prompt"),
        (json.dumps({"prompt": "x " * 100}), "2: .* tokens; text.tokens is 60"),
    ],
)
def test_a_prompt_at_fault_is_named_by_its_line(model: LoadedModel, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=said):
        written(writer(model, tmp_path / "text", file))


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_rows_come_back_as_they_were(rows: list[list[int]]) -> None:
    text = sequences._padded(rows, [0] * len(rows), 9)
    assert [text.tokens(i) for i in range(len(rows))] == rows
    assert text.num_tokens == sum(map(len, rows))
    swapped = text.only(np.arange(len(rows)) >= 0)
    assert swapped.digest == text.digest
