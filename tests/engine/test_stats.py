"""Sums of statistics follow from their shape."""

from dataclasses import replace

from engine.stats import Counters, Forecast, Identity, PageCounts, PrefillQueue, ReplicaStats

STATS = ReplicaStats(
    identity=Identity(role="decode", agent="a", synthetic=True),
    waiting=1,
    counters=Counters(steps=2, verified_at=[3, 1], accepted_at=[1, 0]),
    pages={"full": PageCounts(total=9, free=4, held=5, quarantined=0)},
    prefill_queue=PrefillQueue(queued_tokens={0: 5}),
    forecast=Forecast(accepted_length=1.5),
)


def test_numbers_add_up_in_every_group_lists_by_element_and_dictionaries_by_key() -> None:
    other = ReplicaStats(
        identity=Identity(role="prefill", agent="b"),
        waiting=2,
        counters=Counters(steps=5, verified_at=[1, 1, 1]),
        pages={"window": PageCounts(total=1, free=1, held=0, quarantined=0)},
        prefill_queue=PrefillQueue(queued_tokens={0: 1, 3: 7}),
    )

    both = STATS + other

    assert (both.waiting, both.counters.steps, both.counters.verified_at) == (3, 7, [4, 2, 1])
    assert both.prefill_queue.queued_tokens == {0: 6, 3: 7}
    assert both.pages == {**STATS.pages, **other.pages}
    assert both.forecast == STATS.forecast


def test_a_sum_has_the_texts_and_flags_of_the_first_summand() -> None:
    assert (STATS + replace(STATS, identity=Identity(role="prefill", agent="b"))).identity == STATS.identity


def test_a_sum_changes_neither_summand_and_shares_no_list_with_them() -> None:
    both = STATS + STATS

    both.counters.count(drafted=2, verified=2, accepted=1)

    assert STATS.counters == Counters(steps=2, verified_at=[3, 1], accepted_at=[1, 0])


def test_a_snapshot_stays_as_it_is_while_steps_are_counted() -> None:
    counters = Counters()
    counters.count(drafted=2, verified=2, accepted=1)
    before = counters.snapshot()

    counters.count(drafted=3, verified=3, accepted=2)

    assert (before.drafted, before.verified_at, before.accepted_at) == (2, [1, 1], [1, 0])
