"""When a request ends, and what its last chunk says."""

from dataclasses import replace

import pytest

from engine.types import FinishReason, Request, StopRules
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request

FREE = request("free", tokens=20, max_tokens=30)


def greedy(rig: Rig) -> list[int]:
    """Return the tokens that the model generates for the prompt of `FREE` without stop rules."""
    rig.add(FREE)
    rig.run()
    return rig.tokens("free")


def same_prompt(name: str, **stop: object) -> Request:
    return replace(FREE, id=name, stop=replace(FREE.stop, **stop))


def test_max_tokens_counts_the_first_token_too(rig: Rig) -> None:
    rig.add(request("r", max_tokens=7))
    rig.run()

    assert len(rig.tokens("r")) == 7
    assert rig.finish("r") == FinishReason.LENGTH


def test_a_request_of_one_token_is_released_without_a_read(rig: Rig) -> None:
    rig.add(request("r", max_tokens=1))
    rig.run()

    assert len(rig.tokens("r")) == 1
    assert rig.finish("r") == FinishReason.LENGTH
    assert rig.chunks["r"][-1].timings is not None
    assert rig.decoder.stats().transfers.reads == 0
    assert rig.leases == rig.prefiller.stats().leases.expired == 0


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_stop_token_ends_the_request_at_every_position(rig: Rig, at: int) -> None:
    free = greedy(rig)
    expected = free[: free.index(free[at]) + 1]
    rig.add(same_prompt("r", stop_token_ids=(free[at],)))
    rig.run()

    assert rig.tokens("r") == expected
    assert rig.finish("r") == FinishReason.STOP
    assert rig.decoder.stats().transfers.reads == (1 if len(expected) == 1 else 2), "the first token needs no pages"


@pytest.mark.parametrize("at", [0, 3])
def test_the_end_of_text_token_ends_a_request_unless_it_is_ignored(make_rig: MakeRig, at: int) -> None:
    rig = make_rig()
    free = greedy(rig)
    rig.decoder._eos_token_ids = (free[at],)
    rig.add(same_prompt("ends", ignore_eos=False))
    rig.add(same_prompt("goes on", ignore_eos=True))
    rig.run()

    assert rig.tokens("ends") == free[: free.index(free[at]) + 1]
    assert rig.finish("ends") == FinishReason.STOP
    assert rig.tokens("goes on") == free


def test_a_stop_token_is_not_part_of_the_text(rig: Rig) -> None:
    free = greedy(rig)
    before = rig.text.decode(free[: free.index(free[4])])
    rig.add(same_prompt("r", stop_token_ids=(free[4],)))
    rig.run()

    assert "".join(chunk.text for chunk in rig.chunks["r"]) == before


def test_the_text_of_the_chunks_is_the_text_of_the_tokens(rig: Rig) -> None:
    tokens = greedy(rig)

    assert "".join(chunk.text for chunk in rig.chunks["free"]) == rig.text.decode(tokens)


def test_every_token_has_its_log_probability(rig: Rig) -> None:
    greedy(rig)

    for chunk in rig.chunks["free"]:
        assert len(chunk.logprobs) == len(chunk.tokens) == 1
        assert chunk.logprobs[0] <= 0.0


@pytest.mark.parametrize("at", [1, 9, 29])
def test_a_resumed_request_continues_with_the_same_tokens_and_limit(rig: Rig, at: int) -> None:
    free = greedy(rig)
    rig.add(same_prompt("r").resumed(tuple(free[:at])))
    rig.run()

    assert free[:at] + rig.tokens("r") == free
    assert rig.finish("r") == FinishReason.LENGTH


def test_requests_do_not_change_each_other(rig: Rig) -> None:
    free = greedy(rig)
    for i in range(6):
        rig.add(request(f"other {i}", tokens=1 + 40 * i, max_tokens=3 + 5 * i))
    rig.add(same_prompt("r"))
    rig.run()

    assert rig.tokens("r") == free


@pytest.mark.parametrize("at", [3, 9])
def test_a_stop_string_across_tokens_ends_the_request_and_is_not_text(rig: Rig, at: int) -> None:
    """The string is the text of two tokens: the tokens are returned, the text ends before them."""
    free = greedy(rig)
    stop = rig.text.decode(free[at : at + 2])
    text = rig.text.decode(free)
    rig.add(same_prompt("r", stop=(stop, "never to be said")))
    rig.run()

    assert "".join(chunk.text for chunk in rig.chunks["r"]) == text[: text.index(stop)]
    assert rig.finish("r") == FinishReason.STOP
    assert rig.tokens("r") == free[: len(rig.tokens("r"))]


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_stop_string_is_found_across_an_interruption(rig: Rig, at: int) -> None:
    free = greedy(rig)
    stop = rig.text.decode(free[6:9])
    rig.add(same_prompt("whole", stop=(stop,)))
    rig.run()
    whole = list(rig.chunks["whole"])
    rig.add(same_prompt("resumed", stop=(stop,)).resumed(tuple(free[:at])))
    rig.run()

    assert free[:at] + rig.tokens("resumed") == rig.tokens("whole")
    assert "".join(c.text for c in rig.chunks["resumed"]) == "".join(c.text for c in whole[at:])


def test_held_back_text_is_sent_when_no_stop_string_follows(rig: Rig) -> None:
    tokens = greedy(rig)
    text = rig.text.decode(tokens)
    rig.add(same_prompt("r", stop=(text[-3:] + "and more",)))
    rig.run()

    assert "".join(chunk.text for chunk in rig.chunks["r"]) == text
    assert rig.finish("r") == FinishReason.LENGTH


def test_nothing_ends_a_request_before_min_tokens(rig: Rig) -> None:
    free = greedy(rig)
    rig.decoder._eos_token_ids = rig.decoder._schedule._eos_token_ids = (free[0],)
    rig.prefiller._eos_token_ids = (free[0],)
    rig.add(same_prompt("r", min_tokens=8, ignore_eos=False, stop_token_ids=(free[1],)))
    rig.run()

    assert len(rig.tokens("r")) >= 8
    assert not {free[0], free[1]} & {*rig.tokens("r")[:8]}


def test_a_stop_string_before_min_tokens_is_ordinary_text(rig: Rig) -> None:
    free = greedy(rig)
    text = rig.text.decode(free)
    early = rig.text.decode(free[:2])
    rig.add(same_prompt("r", stop=(early,), min_tokens=len(free)))
    rig.run()

    assert "".join(chunk.text for chunk in rig.chunks["r"]) == text
    assert rig.finish("r") == FinishReason.LENGTH


def test_every_stop_rule_has_a_test() -> None:
    """A new rule needs a test here."""
    rules = {"max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos"}
    assert {*StopRules.__dataclass_fields__} == rules
