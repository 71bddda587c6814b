import math
from dataclasses import replace

import pytest

from engine.errors import BadRequest
from engine.facts import ModelFacts
from engine.types import Request, Sampling, StopRules

MODEL = ModelFacts(
    name="m",
    architecture="a",
    vocab_size=100,
    max_tokens=32,
    eos_token_ids=(1,),
    dtype="float32",
    page_tokens=16,
    page_bytes={},
    fingerprint={},
    num_parameters=0,
)
GOOD = Request(id="r", prompt=(5, 6, 7), sampling=Sampling(), stop=StopRules(max_tokens=4))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt", {"prompt": ()}),
        ("token_ids", {"prompt": (5, 100)}),
        ("token_ids", {"prompt": (-1,)}),
        ("prompt", {"prompt": (5,) * 32}),
        ("max_tokens", {"stop": StopRules(max_tokens=0)}),
        ("max_tokens", {"stop": StopRules(max_tokens=30)}),
        ("stop_token_ids", {"stop": StopRules(max_tokens=4, stop_token_ids=(3, 100))}),
        ("stop_token_ids", {"stop": StopRules(max_tokens=4, stop_token_ids=(-1,))}),
        ("temperature", {"sampling": Sampling(temperature=-0.1)}),
        ("temperature", {"sampling": Sampling(temperature=100.1)}),
        ("temperature", {"sampling": Sampling(temperature=math.nan)}),
        ("temperature", {"sampling": Sampling(temperature=math.inf)}),
        ("top_k", {"sampling": Sampling(temperature=1.0, top_k=-1)}),
        ("top_p", {"sampling": Sampling(temperature=1.0, top_p=0.0)}),
        ("top_p", {"sampling": Sampling(temperature=1.0, top_p=1.1)}),
        ("top_p", {"sampling": Sampling(temperature=1.0, top_p=math.nan)}),
        ("seed", {"sampling": Sampling(temperature=1.0, seed=-1)}),
        ("seed", {"sampling": Sampling(temperature=1.0, seed=2**63)}),
        ("seed", {"sampling": Sampling(seed=3, seeded=True)}),
        ("temperature", {"sampling": Sampling(top_k=5)}),
        ("temperature", {"sampling": Sampling(top_p=0.5)}),
        ("speculation.max_tokens", {"max_drafts": -1}),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_field(field: str, change: dict[str, object]) -> None:
    with pytest.raises(BadRequest) as caught:
        replace(GOOD, **change).check(MODEL)

    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (0,)},
        {"prompt": (99,) * 31, "stop": StopRules(max_tokens=1)},
        {"stop": StopRules(max_tokens=29, stop_token_ids=(0, 99))},
        {"sampling": Sampling(temperature=100.0, top_k=10**6, top_p=1e-6, seed=2**63 - 1, seeded=True)},
        {"sampling": Sampling(top_k=1)},
        {"max_drafts": 0},
    ],
)
def test_the_limits_themselves_are_allowed(change: dict[str, object]) -> None:
    replace(GOOD, **change).check(MODEL)


def test_the_message_says_how_the_lengths_add_up() -> None:
    with pytest.raises(BadRequest, match="prompt 3 \\+ max_tokens 30 = 33 tokens; the model takes 32"):
        replace(GOOD, stop=StopRules(max_tokens=30)).check(MODEL)


def test_a_resumed_request_keeps_its_limits_and_has_the_sent_tokens() -> None:
    resumed = GOOD.resumed((8, 9)).resumed((10,))

    assert resumed.tokens == (5, 6, 7, 8, 9, 10)
    assert resumed.max_total_tokens == GOOD.max_total_tokens
