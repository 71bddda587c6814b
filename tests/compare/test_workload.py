"""What workloads say of themselves, and the tokens of their prompts, against what can be worked out by hand."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from compare.simulator.workload import Arrival, PromptSegment, Workload, tokens_of
from tests.compare.prompts import arrivals, at, common, prompt


def test_a_workload_is_in_order_and_sums_itself_up() -> None:
    workload = Workload(
        (
            Arrival(at=4.0, input_tokens=100, output_tokens=1),
            Arrival(at=0.5, input_tokens=300, output_tokens=2),
            Arrival(at=2.0, input_tokens=200, output_tokens=6),
        )
    )

    assert [arrival.at for arrival in workload] == [0.5, 2.0, 4.0]
    assert (len(workload), workload.seconds, workload.requests_per_second) == (3, 4.0, 0.75)
    assert (workload.mean_input_tokens, workload.mean_output_tokens) == (200, 3)
    assert at(0, 0).requests_per_second == math.inf


def test_the_first_are_the_earliest_and_scaling_changes_times_alone() -> None:
    workload = Workload(tuple(prompt(PromptSegment("a", n), at=n) for n in (4, 2, 6)))

    faster = workload.scaled(2)

    assert [arrival.at for arrival in workload.first(2)] == [2, 4]
    assert [arrival.at for arrival in faster] == [1, 2, 3]
    assert faster.requests_per_second == 2 * workload.requests_per_second
    assert [arrival.shared for arrival in faster] == [arrival.shared for arrival in workload]


def test_repeated_is_what_earlier_prompts_began_with() -> None:
    system, more = PromptSegment("system", 10), PromptSegment("more", 10)

    def repeated(*prompts: Arrival) -> float:
        return Workload(prompts).repeated

    assert repeated(prompt(system, own=10), prompt(system, own=10)) == 10 / 40
    assert repeated(prompt(system, more), prompt(system, more)) == 20 / 40
    assert repeated(prompt(PromptSegment("system", 5), own=5), prompt(system)) == 5 / 20
    assert repeated(prompt(system), prompt(PromptSegment("system", 5), own=5)) == 5 / 20
    assert repeated(prompt(more), prompt(system, more)) == 0, "not at the beginning"
    assert repeated(prompt(PromptSegment("system", 5), more), prompt(system, more)) == 5 / 35, "what differs ends it"


stretches = st.lists(st.builds(PromptSegment, st.sampled_from("abc"), st.sampled_from([1, 2, 3])), max_size=4)


@given(st.lists(st.tuples(stretches, st.integers(0, 2)), min_size=1, max_size=6))
def test_repeated_agrees_with_the_tokens(prompts: list[tuple[list[PromptSegment], int]]) -> None:
    """A cache that knows every beginning of every earlier prompt, token by token."""
    workload = Workload(tuple(prompt(*shared, own=own + (not shared)) for shared, own in prompts))
    tokens = [tokens_of(arrival, index) for index, arrival in enumerate(workload)]

    known = sum(max((common(tokens[n], t) for t in tokens[:n]), default=0) for n in range(len(tokens)))

    assert workload.repeated == known / sum(map(len, tokens))


def test_tokens_are_the_same_where_names_are_and_nowhere_else() -> None:
    system, session, longer = (
        PromptSegment("system", 100),
        PromptSegment("session 1", 50),
        PromptSegment("session 1", 80),
    )
    first, second, other = (
        prompt(system, session),
        prompt(system, longer, own=7),
        prompt(PromptSegment("session 2", 90)),
    )

    a, b, c = (tokens_of(arrival, index) for index, arrival in enumerate((first, second, other)))

    assert (len(a), len(b), len(c)) == (150, 187, 90)
    assert b[:150] == a
    assert not set(c) & set(b)
    assert not set(tokens_of(second, 1)[-7:]) & set(tokens_of(second, 2)), "what is its own changes with the place"


def test_tokens_do_not_depend_on_the_process() -> None:
    """`hash` of a text would give others each time."""
    system, nothing = 0xA99CF92E270B8F04 >> 3, 0xE4A6A0577479B2B4 >> 3  # b2sum -l 64
    arrival = prompt(PromptSegment("system", 2), PromptSegment("", 1), own=1)

    assert tokens_of(arrival, 3) == (system, system + 1, nothing, 2**62 + 3 * 2**24)


@given(st.lists(arrivals(), min_size=2, max_size=4))
def test_tokens_are_plain_counted_and_distinct(given: list[Arrival]) -> None:
    tokens = [tokens_of(arrival, index) for index, arrival in enumerate(given)]

    for arrival, ids in zip(given, tokens, strict=True):
        assert len(ids) == arrival.input_tokens == len(set(ids))
        assert all(type(token) is int for token in ids) and min(ids) >= 0 and max(ids) < 2**63
    for (a, one), (b, other) in pairwise(zip(given, tokens, strict=True)):
        alike = a.shared and b.shared and a.shared[0].name == b.shared[0].name
        assert len(set(one) & set(other)) == (min(a.shared_tokens, b.shared_tokens) if alike else 0)
