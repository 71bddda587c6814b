from dataclasses import dataclass, field

from engine.pages import PageQueue, Precedence


@dataclass
class Kept:
    """A tenant that keeps what it is given."""

    waits: list[Precedence] = field(default_factory=list)
    sits: list[Precedence] = field(default_factory=list)

    @property
    def holding(self) -> int:
        return len(self.sits)

    @property
    def first_waiting(self) -> Precedence | None:
        return min(self.waits, default=None)

    @property
    def last_holding(self) -> Precedence | None:
        return max(self.sits, default=None)

    def evict_last(self) -> None:
        self.sits.remove(max(self.sits))


def line(*tenants: Kept) -> PageQueue:
    joined = PageQueue()
    for tenant in tenants:
        joined.join(tenant)
    return joined


def test_requests_are_counted_over_all_engines() -> None:
    assert line(Kept(sits=[(0, 1.0), (0, 2.0)]), Kept(), Kept(sits=[(0, 3.0)])).holding == 3


def test_the_next_request_is_the_one_with_highest_precedence() -> None:
    both = line(Kept(waits=[(0, 5.0)]), Kept(waits=[(1, 1.0), (0, 4.0)]), Kept(sits=[(0, 0.0)]))

    assert both.is_next((0, 4.0)), "a request does not precede itself"
    assert both.is_next((-1, 9.0))
    assert not both.is_next((0, 5.0))
    assert not both.is_next((1, 1.0))


def test_the_lowest_precedence_is_preempted_first_in_either_engine() -> None:
    one, other = Kept(sits=[(0, 1.0), (0, 6.0)]), Kept(sits=[(0, 3.0), (0, 4.0)])
    both = line(one, Kept(waits=[(9, 9.0)]), other)

    left = []
    for _ in range(4):
        last = both.last()
        assert isinstance(last, Kept)
        left.append(last.last_holding)
        last.evict_last()

    assert left == [(0, 6.0), (0, 4.0), (0, 3.0), (0, 1.0)]


def test_ties_preempt_the_request_of_the_engine_that_joined_last() -> None:
    one, other = Kept(sits=[(0, 1.0)]), Kept(sits=[(0, 1.0)])

    assert line(one, other).last() is other
