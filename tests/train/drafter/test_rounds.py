"""The figures of a drafter, by hand and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode.record import StepRecord
from train.drafter.rounds import (
    THRESHOLDS,
    DraftRound,
    GeneratedAnswer,
    figures,
    predicted_survival,
    rounds,
    with_threshold,
)


def step(
    requests: list[str],
    positions: list[int],
    lengths: list[int],
    accepted: list[int],
    confidence: list[list[float]] | None = None,
) -> StepRecord:
    times = {"began": 0.0, "draft_seconds": 0.0, "plan_seconds": 0.0, "verify_seconds": 0.0}
    rows = confidence or []
    return StepRecord(
        **times,
        requests=requests,
        positions=positions,
        lengths=lengths,
        accepted=accepted,
        confidence=rows,
        survival=rows,
    )


def test_rounds_are_cut_where_an_accepted_draft_ends_the_answer() -> None:
    """Tokens 10 .. 16 were said; the last is an end token. The first token (10) came from prefill."""
    answers = {"a": GeneratedAnswer(start=10, tokens=range(7), ended=True)}
    steps = [
        step(["a"], [10], [3], [1], [[0.9, 0.8, 0.7]]),  # says 11, 12
        step(["a"], [12], [3], [3], [[0.9, 0.8, 0.7]]),  # says 13, 14, 15, 16: the end token is the target's own
    ]
    assert rounds(steps, answers, 3) == [
        DraftRound(3, 1, False, (0.9, 0.8, 0.7)),
        DraftRound(3, 3, False, (0.9, 0.8, 0.7)),
    ]
    within = [step(["a"], [14], [3], [3], [[0.9, 0.8, 0.7]])]  # 15 and 16 accepted, 17 is behind the end
    assert rounds(within, answers, 3) == [DraftRound(2, 2, True, (0.9, 0.8))]
    assert rounds(within, answers, 3)[0].tokens == 2
    assert [r.tokens for r in rounds(steps, answers, 3)] == [2, 4]


def test_rounds_without_room_for_a_block_are_left_out() -> None:
    answers = {"a": GeneratedAnswer(10, range(7), ended=False), "b": GeneratedAnswer(10, range(7), ended=False)}
    steps = [step(["a", "b", "unknown"], [11, 14, 11], [3, 2, 3], [0, 2, 3])]
    assert rounds(steps, answers, 3) == [DraftRound(3, 0, False, ())]


def test_figures_by_hand() -> None:
    of = [
        DraftRound(3, 3, False, (0.9, 0.9, 0.9)),
        DraftRound(3, 1, False, (0.8, 0.5, 0.5)),
        DraftRound(3, 0, False, (0.4, 0.5, 0.5)),
        DraftRound(2, 2, True, (1.0, 1.0)),
    ]
    found = figures(of)
    assert found.rounds == 4
    assert found.accepted_length == (4 + 2 + 1 + 2) / 4
    assert found.reached == [4, 3, 1]
    assert found.acceptance == [3 / 4, 2 / 3, 1.0]
    assert found.ece_by_position[0] == pytest.approx(
        (abs(0.9 - 1) + abs(0.8 - 1) + abs(0.4 - 0) + abs(1.0 - 1)) / 4, abs=1e-9
    )
    assert sum(b.drafts for b in found.reliability) == 3 * 3 + 2
    sweep = with_threshold(of, predicted_survival(of), 0.45)
    assert sweep.verified == (3 + 1 + 0 + 2) / 4
    assert sweep.tokens == (4 + 2 + 1 + 2) / 4
    assert sweep.accepted == (3 + 1 + 2) / 6


def test_a_drafter_without_confidences_has_no_figures_of_them() -> None:
    found = figures([DraftRound(2, 1, False, ()), DraftRound(2, 2, False, ())])
    assert found.accepted_length == 2.5
    assert (found.ece, found.auc, found.sweep, found.reliability) == (None, None, [], [])


def test_too_short_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="raise max_tokens"):
        figures([])


@given(st.integers(0, 2**32), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_a_drafter_that_knows_its_chances_is_calibrated(seed: int, drafts: int) -> None:
    """Drafts survive with exactly the probability that was said: all errors are small, all lengths as expected."""
    generator = np.random.default_rng(seed)
    chance = generator.uniform(0.2, 1.0, (2000, drafts))
    survived = (generator.random(chance.shape) < chance).cumprod(axis=1).sum(axis=1)
    of = [DraftRound(drafts, int(a), False, tuple(c)) for a, c in zip(survived, chance, strict=True)]

    found = figures(of)

    assert found.ece is not None
    assert found.ece < 0.06  # each of 20 bins is off by chance, by about 0.03
    assert max(found.ece_by_position) < 0.06
    assert found.auc is not None
    assert found.auc > 0.55
    expected = 1 + chance.cumprod(axis=1).sum(axis=1).mean()
    assert found.accepted_length == pytest.approx(expected, abs=5 * found.accepted_length_error)
    sweep = {s.threshold: s for s in found.sweep}
    assert sweep[0.0].tokens == found.accepted_length
    assert sweep[0.0].verified == drafts
    for lower, higher in itertools.pairwise(THRESHOLDS):
        assert sweep[higher].verified <= sweep[lower].verified
        assert sweep[higher].tokens <= sweep[lower].tokens
