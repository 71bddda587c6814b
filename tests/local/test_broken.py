"""A request whose logits are not finite ends alone, and leaves nothing behind that could spoil the next one."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine.errors import ModelFailure
from tests.local.rig import Rig, poison, request

POISON = 299


@pytest.fixture
def poisoned(rig: Rig) -> Iterator[Rig]:
    """The model gives NaN from the token POISON on."""
    with poison(rig.builder.model.module, POISON):
        yield rig


@pytest.mark.parametrize("place", ["prompt", "generated"])
def test_a_request_with_nan_fails_and_the_others_continue(poisoned: Rig, place: str) -> None:
    healthy = [request(f"healthy {i}", tokens=20 + i, max_tokens=12) for i in range(3)]
    alone = poisoned.generate(healthy)
    sick = request("sick", tokens=30, max_tokens=20)
    if place == "prompt":
        sick = replace(sick, prompt=(*sick.prompt[:-1], POISON))
    else:
        only = ((POISON, 100.0),)  # the first token drawn is the poison, so it is the decoder that meets NaN
        sick = replace(sick, sampling=replace(sick.sampling, logit_bias=only))

    for one in (*healthy[:2], sick, healthy[2]):
        poisoned.add(replace(one, id=one.id + "!"))
    poisoned.run()

    assert isinstance(poisoned.errors["sick!"], ModelFailure)
    assert {one.id: poisoned.tokens(one.id + "!") for one in healthy} == alone
    for store in (poisoned.prefiller._pages.store, poisoned.decoder._pages.store):
        for records in store.records.values():
            assert records[1:].view(torch.float32).isfinite().all(), "NaN stays in a page"
    poisoned.errors.clear()
    again = poisoned.generate([replace(one, id=one.id + "?") for one in healthy])
    assert [*again.values()] == [*alone.values()]


@pytest.mark.parametrize("place", ["the answer to its release", "its read"])
def test_pages_of_a_lost_read_keep_no_bytes(rig: Rig, place: str) -> None:
    """They once did: if a broken prompt had reused the pages, their next holder read NaN."""
    grows = replace(request("grows", tokens=60, max_tokens=12), cache_salt="grows")  # into a page that was not read
    expected = rig.generate([grows])["grows"]
    rig.wire.stalled = True
    rig.add(request("lost", tokens=150))
    rig.until(lambda: rig.phases() == {"lost": "reading"})
    rig.prefiller.cancel("lost")
    for records in rig.prefiller._pages.store.records.values():
        records.view(torch.float32).fill_(float("nan"))
    if place == "its read":
        rig.cancel("lost")
    rig.wire.stalled = False
    rig.run()
    for records in rig.prefiller._pages.store.records.values():
        records.zero_()
    rig.prefiller._pages.forget_cached()
    rig.errors.clear()

    assert rig.generate([replace(grows, id="next", cache_salt="next")])["next"] == expected


@pytest.mark.parametrize("place", ["prompt", "generated"])
def test_no_page_of_a_broken_request_is_a_prefix_hit(poisoned: Rig, place: str) -> None:
    """Its published pages were finite, but are not trusted."""
    sick = request("sick", tokens=140, max_tokens=20)
    if place == "prompt":
        sick = replace(sick, prompt=(*sick.prompt, POISON))
    else:
        sick = replace(sick, sampling=replace(sick.sampling, logit_bias=((POISON, 100.0),)))
    poisoned.add(sick)
    poisoned.run()
    assert isinstance(poisoned.errors.pop("sick"), ModelFailure)

    poisoned.generate([replace(request("next"), prompt=sick.prompt[:140])])

    pool = poisoned.prefiller if place == "prompt" else poisoned.decoder
    assert pool.stats().counters.prefix_hit_tokens == 0
