import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from engine.sampling import NO_TOKEN, SamplingBatch, log_probs, sample
from engine.types import MAX_TOP_LOGPROBS, Sampling

CPU = torch.device("cpu")
VOCAB = 12
GREEDY = Sampling()


def drawn(logits_RV: torch.Tensor, options: list[Sampling], positions: list[int]) -> list[int]:
    batch = SamplingBatch.of([*zip(options, positions, strict=True)], CPU)
    return sample(logits_RV, batch).token_R.tolist()


def kept_slowly(logits: list[int], temperature: float, top_k: int, top_p: float) -> set[int]:
    """Which tokens may be drawn, one step after the other, as the options are documented."""
    scaled = [logit / temperature for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -scaled[i])
    if 0 < top_k < len(order):
        order = [i for i in order if scaled[i] >= scaled[order[top_k - 1]]]
    if top_p < 1.0:
        weights = [math.exp(scaled[i]) for i in order]
        before = [sum(weights[:n]) / sum(weights) for n in range(len(order))]
        assume(all(abs(mass - top_p) > 1e-5 for mass in before))
        least = min(scaled[i] for i, mass in zip(order, before, strict=True) if mass < top_p)
        order = [i for i in order if scaled[i] >= least]
    return set(order)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=VOCAB),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, VOCAB + 3),
    st.one_of(st.just(1.0), st.just(1e-6), st.floats(0.01, 0.999)),
)
@example([1, 0, -1, -2], 1.0, 2, 0.7)  # the first of the two that top-k leaves has 0.73 of their mass, 0.64 of all
def test_top_k_and_top_p_keep_what_a_slow_reference_keeps(
    logits: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    """Small whole logits, so that there are many ties and none by rounding."""
    option = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    other = Sampling(temperature=1.0, top_k=1)  # so that the row is filtered beside one with other options
    rows = torch.tensor([logits, logits], dtype=torch.float32)

    kept_V = log_probs(rows, SamplingBatch.of([(option, 0), (other, 0)], CPU))[0].isfinite()

    assert set(kept_V.nonzero().flatten().tolist()) == kept_slowly(logits, temperature, top_k, top_p)


def test_greedy_is_argmax() -> None:
    logits_RV = torch.randn(50, 100)

    assert drawn(logits_RV, [GREEDY] * 50, [0] * 50) == logits_RV.argmax(dim=-1).tolist()


def test_a_greedy_row_is_exact_beside_a_drawn_one() -> None:
    """A log-softmax rounds: two logits one step apart may become equal, and then the first would win."""
    best = torch.tensor(0.1)
    logits_V = torch.cat([best.nextafter(torch.tensor(0.0))[None], best[None], torch.full((50,), 0.09)])

    tokens = drawn(logits_V.expand(2, -1), [GREEDY, Sampling(temperature=1.0)], [0, 0])

    assert tokens[0] == 1


def test_a_token_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(2)
    options = [Sampling(temperature=0.5 + i % 3, top_k=i % 4 * 9, seed=i * 977) for i in range(20)]
    options[3] = options[11] = GREEDY
    logits_RV, positions = torch.randn(20, 64), [5 + 3 * i for i in range(20)]
    together = drawn(logits_RV, options, positions)

    alone = [drawn(logits_RV[i : i + 1], [options[i]], [positions[i]])[0] for i in range(20)]
    backwards = drawn(logits_RV.flip(0), options[::-1], positions[::-1])

    assert alone == together == backwards[::-1]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-60])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits_RV = torch.tensor([[30.0, 31.0, -5.0, 29.0]])

    assert drawn(logits_RV, [Sampling(temperature=temperature, seed=4)], [7]) == [1]


def test_the_log_probability_is_the_models_own() -> None:
    torch.manual_seed(3)
    logits_RV = torch.randn(4, VOCAB)
    hot = Sampling(temperature=1.6, top_k=5)
    options = [GREEDY, hot, replace(hot, temperature=0.7), replace(hot, top_p=0.8)]

    draws = sample(logits_RV, SamplingBatch.of([(o, 9) for o in options], CPU))

    expected_R = logits_RV.softmax(dim=-1).gather(-1, draws.token_R[:, None])[:, 0].log()
    assert torch.allclose(draws.logprob_R, expected_R, atol=1e-6)


def test_each_row_is_told_as_many_alternatives_as_it_wants() -> None:
    torch.manual_seed(4)
    logits_RV = torch.randn(3, VOCAB)
    options = [Sampling(top_logprobs=2), GREEDY, Sampling(temperature=2.0, top_k=1, top_logprobs=MAX_TOP_LOGPROBS)]

    drawn = sample(logits_RV, SamplingBatch.of([(o, 9) for o in options], CPU)).to_host()

    assert [len(draw.top) for draw in drawn] == [2, 0, VOCAB]
    for draw, row_V in zip(drawn, logits_RV, strict=True):
        best = row_V.log_softmax(-1).sort(descending=True)
        assert [token for token, _ in draw.top] == best.indices.tolist()[: len(draw.top)]
        assert [logprob for _, logprob in draw.top] == pytest.approx(best.values.tolist()[: len(draw.top)], abs=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gets_no_token_and_the_others_theirs(poison: float) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    expected = logits.argmax(dim=-1).tolist()
    logits[1, 7] = poison

    assert drawn(logits, [GREEDY] * 3, [0, 0, 0]) == [expected[0], NO_TOKEN, expected[2]]
