"""Tests the planners: Algorithm 1 against a plain reference, and what every planner guarantees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decode.batch import StepLoad
from decode.draft_length import DraftLengthController
from decode.objective import StepSeconds, expected_throughput, survival, top
from decode.plan import CausalPlanner, FixedPlanner, LaggedPlanner
from engine.drafters import DraftBlock
from engine.steptime import Curve, ProfiledTimes
from tests.decode.steps import step_result

BLOCK = 4


def times(base: float = 1.0, per_token: float = 0.2, draft: float = 0.1) -> ProfiledTimes:
    curve = Curve((1, 1000), (base + per_token, base + 1000 * per_token))
    return ProfiledTimes({}, 64, Curve((1,), (draft,)), {1: curve})


def block(confidence: list[list[float]]) -> DraftBlock:
    rows = torch.tensor(confidence)
    return DraftBlock(torch.zeros(rows.shape, dtype=torch.int64), None, rows)


def load(count: int, max_drafts: int = BLOCK) -> StepLoad:
    return StepLoad([f"r{i}" for i in range(count)], [max_drafts] * count, 64)


def algorithm_1(confidence: list[list[float]], seconds: ProfiledTimes) -> list[int]:
    """Line by line from the paper: admit in the order of survival, stop at the first fall."""
    requests = len(confidence)
    candidates = []
    for r, row in enumerate(confidence):
        a = 1.0
        for j, c in enumerate(row):
            a *= c
            candidates.append((-a, j, r))
    lengths, admitted, tau = [0] * requests, 0, float(requests)
    draft = seconds.draft_seconds(requests, 64)
    best = tau / (draft + seconds.verify_seconds(requests, requests, 64))
    for minus_a, _, r in sorted(candidates):
        worth = (tau - minus_a) / (draft + seconds.verify_seconds(requests, requests + admitted + 1, 64))
        if worth <= best:
            break
        best, tau, admitted = worth, tau - minus_a, admitted + 1
        lengths[r] += 1
    return lengths


confidences = st.lists(
    st.lists(st.integers(1, 99).map(lambda n: n / 100), min_size=BLOCK, max_size=BLOCK), min_size=1, max_size=5
)


@given(confidences, st.floats(0.01, 1.0))
def test_causal_is_algorithm_1(confidence: list[list[float]], per_token: float) -> None:
    seconds = times(per_token=per_token)

    planned = CausalPlanner(seconds, BLOCK).plan(block(confidence), load(len(confidence)))

    expected = algorithm_1([[float(torch.tensor(c)) for c in row] for row in confidence], seconds)
    assert planned == expected


@given(
    confidences, st.lists(st.integers(0, BLOCK), min_size=5, max_size=5), st.sampled_from(["causal", "lagged", "fixed"])
)
def test_no_request_gets_more_than_it_can_use(confidence: list[list[float]], limits: list[int], kind: str) -> None:
    planner = {
        "causal": CausalPlanner(times(), BLOCK),
        "lagged": LaggedPlanner(times(), BLOCK),
        "fixed": FixedPlanner(3),
    }[kind]
    wanted = StepLoad([str(i) for i in range(len(confidence))], limits[: len(confidence)], 64)

    for _ in range(4):
        planned = planner.plan(block(confidence), wanted)

        assert all(0 <= n <= limit for n, limit in zip(planned, wanted.max_drafts, strict=True))


@given(confidences)
def test_a_higher_verify_cost_never_adds_drafts(confidence: list[list[float]]) -> None:
    """A more expensive token never makes the plan longer; with a free one every draft that can survive is verified."""
    plans = [
        sum(CausalPlanner(times(per_token=p), BLOCK).plan(block(confidence), load(len(confidence))))
        for p in (0.0, 0.1, 0.5, 5.0)
    ]

    assert plans == sorted(plans, reverse=True)
    assert plans[0] == BLOCK * len(confidence)


def test_ties_go_to_the_earlier_draft_and_then_to_the_earlier_request() -> None:
    survival_RK = torch.full((3, 2), 0.5, dtype=torch.float64)

    assert [top(survival_RK, n) for n in range(7)] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2],
    ]  # fmt: skip


def test_the_lagged_planner_takes_its_budget_from_two_steps_ago_and_its_order_from_this_step() -> None:
    planner = LaggedPlanner(times(per_token=0.5), BLOCK)
    good, bad = [0.95] * BLOCK, [0.01] * BLOCK
    plans = [
        planner.plan(block(rows), load(2)) for rows in ([good, good], [bad, bad], [bad, good], [bad, bad], [good, bad])
    ]

    assert sum(plans[0]) == sum(plans[1]) == 2 * BLOCK, "no request has confidences yet: everything is verified"
    assert sum(plans[2]) > BLOCK, "step 0 was good"
    assert plans[3] == [0, 0], "step 1 was bad"
    assert plans[4] == [BLOCK, 0], "step 2 was half good; now it is the other half"


def test_a_new_request_does_not_inherit_another_ones_confidence() -> None:
    planner = LaggedPlanner(times(per_token=0.5), BLOCK)
    for _ in range(2):
        planner.plan(block([[0.99] * BLOCK, [0.01] * BLOCK]), StepLoad(["sure", "unsure"], [BLOCK] * 2, 64))

    one = planner.plan(block([[0.5] * BLOCK]), StepLoad(["unsure"], [BLOCK], 64))

    assert one == [0]


def test_survival_is_the_cumulative_product() -> None:
    rows = survival(block([[0.5, 0.5, 1.0, 0.1]]), [3])

    assert rows.tolist() == [[0.5, 0.25, 0.25, 0.0]]


def test_theta_is_tokens_per_second() -> None:
    seconds = StepSeconds(times(base=1.0, per_token=1.0, draft=0.5), 2)

    throughput = expected_throughput(torch.tensor([[0.8, 0.4]], dtype=torch.float64), seconds, load(1))

    assert throughput.tolist() == pytest.approx([1 / 2.5, 1.8 / 3.5, 2.2 / 4.5])


def drafted_steps(
    planner: CausalPlanner | LaggedPlanner, confidence: float, steps: int, requests: int = 1
) -> list[int]:
    """Which of so many steps drafted, if drafts look like that."""
    drafted = []
    for step in range(steps):
        if most := planner.drafts(load(requests)):
            planner.plan(block([[confidence] * most] * requests), load(requests))
            drafted.append(step)
    return drafted


@pytest.mark.parametrize("kind", [CausalPlanner, LaggedPlanner])
def test_drafting_that_pays_continues_and_other_drafting_is_tried_ever_more_rarely(
    kind: type[CausalPlanner | LaggedPlanner],
) -> None:
    """A step takes 1 + 0.2 per token, drafting 1 more: a draft that survives half the time is not worth it."""
    seconds = times(draft=1.0)

    assert drafted_steps(kind(seconds, BLOCK), 0.95, 20) == list(range(20))
    assert drafted_steps(kind(seconds, BLOCK), 0.3, 800) == [0, 8, 24, 56, 120, 248, 504, 760]


def test_drafting_resumes_when_drafts_get_better() -> None:
    planner = CausalPlanner(times(draft=1.0), BLOCK)
    drafted_steps(planner, 0.3, 60)

    later = drafted_steps(planner, 0.99, 400)

    assert len(later) > 200, "better drafts were seen when they were tried, and the mean followed"
    assert later[-50:] == list(range(350, 400))


@given(confidences, st.floats(0.01, 3.0))
def test_drafting_pays_if_theta_of_the_expected_drafts_is_higher(confidence: list[list[float]], draft: float) -> None:
    seconds, requests = times(draft=draft), len(confidence)
    controller = DraftLengthController(StepSeconds(seconds, BLOCK))
    controller.observe(survival(block(confidence), [BLOCK] * requests))

    pays = controller.drafts(load(requests)) > 0

    mean = [sum(float(torch.tensor(row[: j + 1]).prod()) for row in confidence) / requests for j in range(BLOCK)]
    without = requests / seconds.verify_seconds(requests, requests, 64)
    best, tau, tokens = 0.0, float(requests), requests
    for chance in [0.0, *[m for m in mean for _ in range(requests)]]:
        tau, tokens = tau + chance, tokens + (chance > 0)
        best = max(best, tau / (draft + seconds.verify_seconds(requests, tokens, 64)))
    if abs(best / without - 1) > 1e-6:
        assert pays == (best > without)


@pytest.mark.parametrize("kind", [CausalPlanner, LaggedPlanner])
def test_one_more_draft_is_made_than_is_worth_verifying(kind: type[CausalPlanner | LaggedPlanner]) -> None:
    """Drafts survive nine times of ten, then hardly ever, then always."""
    planner = kind(times(per_token=0.3, draft=0.01), BLOCK)
    made = []
    for second in [0.1] * 12 + [0.95] * 40:
        most = planner.drafts(load(1))
        planner.plan(block([[0.9, second, 0.95, 0.95][:most]]), load(1))
        made.append(most)

    assert made[0] == BLOCK, "nothing is known yet"
    assert made[1:13] == [2] * 12
    assert made[-1] == BLOCK


def test_nothing_is_drafted_for_requests_that_can_use_no_draft() -> None:
    for planner in (CausalPlanner(times(), BLOCK), LaggedPlanner(times(), BLOCK), FixedPlanner(3)):
        assert not planner.drafts(load(2, max_drafts=0))
        assert planner.drafts(load(2, max_drafts=1))
    assert not FixedPlanner(0).drafts(load(2))


@given(st.floats(0.3, 3.0), st.floats(0.3, 3.0))
def test_measured_step_times_correct_the_table(drafting: float, plain: float) -> None:
    seconds, wanted = StepSeconds(times(), BLOCK), load(3)
    table, without = seconds.drafting(3, wanted).clone(), seconds.plain(3, wanted)
    for _ in range(100):
        seconds.observe(step_result(wanted, [2, 1, 0], [0, 0, 0], drafting * float(table[3])))
        seconds.observe(step_result(wanted, [0, 0, 0], [0, 0, 0], plain * without, drafted=False))

    assert seconds.drafting(3, wanted).tolist() == pytest.approx((drafting * table).tolist(), rel=0.01)
    assert seconds.plain(3, wanted) == pytest.approx(plain * without, rel=0.01)


def test_a_single_slow_step_changes_little() -> None:
    seconds, wanted = StepSeconds(times(), BLOCK), load(1)
    for took in (1.2, 1.2, 500.0):  # 1.2 is the table's
        seconds.observe(step_result(wanted, [0], [0], took, drafted=False))

    assert seconds.plain(1, wanted) == pytest.approx(1.3 * 1.2)


def test_drafting_stops_if_measured_steps_are_slower_than_the_table() -> None:
    """By the table it pays; but steps that draft take three times as long."""
    planner, wanted = CausalPlanner(times(draft=0.05), BLOCK), load(1)
    made = []
    for _ in range(60):
        most = planner.drafts(wanted)
        lengths = planner.plan(block([[0.7] * most]), wanted) if most else [0]
        took = 3 * (0.05 + 1.2 + 0.2 * lengths[0]) if most else 1.2
        planner.observe(step_result(wanted, lengths, lengths, took, drafted=most > 0))
        made.append(most)

    assert made[0] > 0
    assert made[30:].count(0) > 25


def test_overhead_per_step_makes_drafting_worth_more() -> None:
    """Drafts save steps and their overhead."""
    seconds = times(base=1.0, per_token=0.2, draft=1.0)

    def pays(overhead: float) -> bool:
        controller = DraftLengthController(StepSeconds(seconds, BLOCK))
        controller.observe(survival(block([[0.5] * BLOCK]), [BLOCK]))
        return controller.drafts(StepLoad(["r"], [BLOCK], 64, overhead)) > 0

    assert [pays(overhead) for overhead in (0.0, 0.1, 5.0, 0.0)] == [False, False, True, False]
