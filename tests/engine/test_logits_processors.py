"""Penalties, biases and forbidden tokens against the formulas, one token after the other."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.logits_processors import LogitsProcessors, TokenHistory
from engine.sampling import NO_TOKEN, SamplingBatch, log_probs, sample
from engine.types import Request, Sampling, StopRules

CPU = torch.device("cpu")
VOCAB = 9
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def draw(prompt: list[int], generated: list[int], min_tokens: int = 0, **sampling: object) -> TokenHistory:
    stop = StopRules(max_tokens=99, min_tokens=min_tokens, stop_token_ids=(2,))
    request = Request(id="r", prompt=tuple(prompt), sampling=Sampling(**sampling), stop=stop)  # type: ignore[arg-type]
    return TokenHistory(request, [*prompt, *generated])


def edited(logits_RV: torch.Tensor, *draws: TokenHistory) -> torch.Tensor:
    logits_processors = LogitsProcessors.of(draws, (0,), CPU)
    return logits_RV if logits_processors is None else logits_processors.applied(logits_RV)


@given(tokens, tokens, st.floats(0.5, 2.0), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 2**30))
def test_penalties_are_the_formulas(
    prompt: list[int], generated: list[int], repetition: float, presence: float, frequency: float, seed: int
) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    penalties = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
    expected = logits.tolist()
    for token in {*prompt, *generated}:
        old = expected[token]
        expected[token] = old / repetition if old > 0 else old * repetition
    for token, count in Counter(generated).items():
        expected[token] -= frequency * count + presence

    ours = edited(logits[None], draw(prompt, generated, **penalties))[0]

    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_bias_is_added_and_other_rows_stay_as_they_are() -> None:
    logits = torch.zeros(3, VOCAB)

    ours = edited(logits, draw([1], []), draw([1], [], logit_bias=((4, 1.5), (5, -100.0))), draw([1], []))

    assert ours[1].tolist() == [0, 0, 0, 0, 1.5, -100, 0, 0, 0]
    assert not ours[0].any()
    assert not ours[2].any()
    assert not logits.any(), "the original is not touched"


@pytest.mark.parametrize(
    ("generated", "forbidden"),
    [([], {8}), ([3], {8, 4}), ([3, 4], {8, 5}), ([4], {8}), ([3, 3], {8, 4}), ([5, 3, 4], {8, 5})],
)
def test_the_last_token_of_a_bad_word_is_forbidden_after_the_rest(generated: list[int], forbidden: set[int]) -> None:
    words = ((8,), (3, 4), (3, 4, 5))

    ours = edited(torch.zeros(1, VOCAB), draw([3, 4], generated, bad_words=words))[0]

    assert {*ours.isinf().nonzero().flatten().tolist()} == forbidden


@pytest.mark.parametrize("count", [0, 2, 3, 4])
def test_no_end_token_is_sampled_before_min_tokens(count: int) -> None:
    """0 ends the text, 2 is a stop token; both are most likely."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [0, 2]] = 50.0
    one = draw([1], [5] * count, min_tokens=3)

    draws = sample(logits, SamplingBatch.of([(one.request.sampling, 0)], CPU), LogitsProcessors.of([one], (0,), CPU))

    assert (draws.token_R.item() in (0, 2)) == (count >= 3)


def test_log_probabilities_are_those_before_any_edit() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    one = draw([1], [], logit_bias=((6, 100.0),))

    draws = sample(logits, SamplingBatch.of([(one.request.sampling, 0)], CPU), LogitsProcessors.of([one], (), CPU))

    assert draws.token_R.item() == 6
    assert draws.logprob_R.item() == pytest.approx(logits.log_softmax(-1)[0, 6].item(), abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=VOCAB), st.floats(0.01, 1.0), st.floats(0.3, 2.0))
def test_min_p_keeps_the_tokens_that_are_likely_enough(logits: list[float], min_p: float, temperature: float) -> None:
    row = torch.tensor([logits])
    probs = (row / temperature).softmax(-1)[0]
    close = ((probs / probs.max() / min_p).log().abs() < 1e-4).any()
    option = Sampling(temperature=temperature, min_p=min_p)

    kept = log_probs(row, SamplingBatch.of([(option, 0)], CPU))[0].isfinite()

    assert close or kept.tolist() == (probs >= min_p * probs.max()).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gives_no_token_and_harms_no_other(bad: float) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    options = [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=3), Sampling(temperature=0.5, seed=4)]
    batch = SamplingBatch.of([(option, 7) for option in options], CPU)
    expected = sample(logits, batch).token_R.tolist()
    for row in range(3):
        broken = logits.clone()
        broken[row, 4] = bad

        tokens = sample(broken, batch).token_R.tolist()

        assert tokens == [NO_TOKEN if i == row else token for i, token in enumerate(expected)]


def test_requests_without_options_need_no_processors() -> None:
    plain = draw([1], [2])

    assert LogitsProcessors.of([plain, replace(plain, tokens=[1])], (0,), CPU) is None
