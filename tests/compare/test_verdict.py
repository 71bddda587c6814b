"""Verdicts, break-even and what they depend on, over devices of which the winner is known."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.study import breakeven
from compare.study.breakeven import ServingOption, break_even
from compare.study.scenario import Scenario
from compare.study.study import Rivals, Study, dollars, joules
from compare.study.unknowns import span, unknowns
from compare.study.verdict import Verdict, VerdictKind, verdict
from tests.compare.made_up import figure, gpu, scenario


def study(tmp_path: Path, changed: dict[str, Any] | None = None, **other: Any) -> Study:
    """Of a plain device and a special one, which is the same in all that is not changed."""
    plain, special = gpu(tmp_path, "plain"), gpu(tmp_path, "special", **(changed or {}))
    return Study.of(Scenario.parse(scenario(plain, special, **other)))


def decided(one: Study) -> Verdict:
    return verdict(one, Rivals("special", "DSpark", one.scenario.decide_at[0]))


def test_what_is_better_at_the_same_cost_pays(tmp_path: Path) -> None:
    one = decided(study(tmp_path, {"bandwidth": figure(8, "TB/s")}))

    assert one.says is VerdictKind.PAYS
    assert one.ratio[0] < 1


def test_what_costs_more_and_is_no_better_does_not(tmp_path: Path) -> None:
    one = decided(study(tmp_path, {"cost": figure(3, "$/h")}))

    assert one.says is VerdictKind.NOT
    assert one.ratio[0] > 1
    assert one.share[0] is None


def test_the_verdict_turns_where_a_price_that_nobody_knows_passes_it(tmp_path: Path) -> None:
    """Twice the bandwidth pays up to some cost; within an unknown range that has it inside, nothing is decided."""
    changed = {"bandwidth": figure(8, "TB/s"), "cost": figure((1, 20), "$/h")}
    one = study(tmp_path, changed)
    found = decided(one)

    assert found.says is VerdictKind.OPEN
    (condition,) = found.conditions
    assert condition.unknown.name.endswith(": cost")
    assert condition.below

    for cost, says in ((condition.value / 1.1, VerdictKind.PAYS), (condition.value * 1.1, VerdictKind.NOT)):
        assert decided(study(tmp_path, {**changed, "cost": figure(cost, "$/h")})).says is says


def test_only_what_gets_there_is_alone(tmp_path: Path) -> None:
    """Steps that take a layer's time at least bound the speed of both; without it the special device has no bound."""
    base = study(tmp_path, {"bandwidth": figure(400, "TB/s"), "cost": figure(50, "$/h")})
    fast = max(one.at(1).user_rate for one in base.steady["DSpark"])

    assert verdict(base, Rivals("special", "DSpark", 1.05 * fast)).says is VerdictKind.ALONE
    slow = study(tmp_path, {"bandwidth": figure(0.2, "TB/s")})
    assert verdict(slow, Rivals("special", "DSpark", 0.9 * fast)).says is VerdictKind.TOO_SLOW
    assert verdict(slow, Rivals("special", "DSpark", 10 * fast)).says is VerdictKind.NEITHER


def test_only_unknown_figures_of_a_systems_own_devices_count(tmp_path: Path) -> None:
    one = study(tmp_path, {"power": figure((1, 2), "kW")})

    names = {unknown.name.rpartition(": ")[2] for unknown in unknowns(one, "special")}

    assert names == {"power", "cost of capital"}
    assert {unknown.name for unknown in unknowns(one, "DSpark")} == {"cost of capital"}


def test_what_rests_on_unknown_figures_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    changed = {"power": figure((1, 2), "kW")}
    asked, fresh = study(tmp_path, changed), study(tmp_path, changed)
    asked.best("special", 50)

    assert [one.name for one in unknowns(asked, "special")] == [one.name for one in unknowns(fresh, "special")]


def test_a_span_has_the_middle_inside(tmp_path: Path) -> None:
    one = study(tmp_path, {"cost": figure((1, 4), "$/h"), "power": figure((1, 2), "kW")})

    for measure in (dollars, joules):
        least, most = span(one, "special", 100, measure)
        values = [measure(best) for each in (least, one, most) if (best := each.best("special", 100))]
        assert values == sorted(values)
        assert values[0] < values[2]


def test_a_variation_that_leaves_a_system_alone_does_not_compute_it_again(tmp_path: Path) -> None:
    one = study(tmp_path, {"cost": figure((1, 4), "$/h")})
    first = one.best("DSpark", 100)

    (unknown,) = [each for each in unknowns(one, "special") if each.name.endswith(": cost")]
    varied = one.varied(unknown.low(one.scenario))

    assert varied.best("DSpark", 100) is first
    assert dollars(varied.best("special", 100)) < dollars(one.best("special", 100))  # type: ignore[arg-type]


@given(st.floats(10, 1e4), st.floats(0.01, 10), st.floats(10, 1e6), st.floats(0.01, 1e3), st.floats(1, 1e7))
def test_break_even_is_where_one_replica_costs_what_software_does(
    gives: float, costs: float, other_gives: float, other_costs: float, traffic: float
) -> None:
    software, contender = ServingOption(gives, costs), ServingOption(other_gives, other_costs)

    share = break_even(software, contender, traffic)

    if share is not None:
        assert 0 <= share <= 1
        assert share * traffic * software.per_token == pytest.approx(contender.dollars_per_second)
        assert share * traffic <= contender.throughput * (1 + 1e-9)
    else:
        full = min(traffic, contender.throughput)
        assert contender.dollars_per_second > full * software.per_token * (1 - 1e-9)


def test_break_even_without_one_side() -> None:
    side = ServingOption(100, 1)

    assert break_even(side, None, 1e6) is None
    assert break_even(None, side, 1e6) == 0.0


def test_dearer_hardware_never_pays_from_less_traffic(tmp_path: Path) -> None:
    shares = []
    for cost in (1.0, 1.5, 2.0, 2.5, 8.0):
        one = study(tmp_path, {"bandwidth": figure(8, "TB/s"), "cost": figure(cost, "$/h")})
        shares.append(breakeven.at(one, Rivals("special", "DSpark", 100)))

    found = [math.inf if share is None else share for share in shares]
    assert found == sorted(found)
    assert found[0] < found[-1] == math.inf


def test_break_even_takes_the_size_of_replica_that_pays_first(tmp_path: Path) -> None:
    """Small replicas pay from less traffic, large ones are cheaper once they are full."""
    fast = {"bandwidth": figure(8, "TB/s")}
    plain, special = gpu(tmp_path, "plain"), gpu(tmp_path, "special", **fast)

    def share(*units: int) -> float | None:
        content = scenario(plain, special, traffic=1e6, max_requests=4000)
        content["systems"]["special"]["decode"]["units"] = list(units)
        return breakeven.at(Study.of(Scenario.parse(content)), Rivals("special", "DSpark", 100))

    small, large = share(1), share(4)

    assert small is not None
    assert large is not None
    assert small < large
    assert share(1, 4) == share(4, 1) == small
