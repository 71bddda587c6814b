"""A request can be cancelled in every state it can be in; then nothing of it is left on either side."""

import pytest

from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request


def assert_gone(rig: Rig, name: str) -> None:
    """Nothing is held for it, and nothing of it is heard again."""
    heard = len(rig.chunks[name])
    rig.run()
    assert len(rig.chunks[name]) == heard
    assert rig.finish(name) is None
    assert not rig.errors


def test_cancel_while_it_waits_for_prefill(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"max_requests": 1})
    rig.add(request("first", tokens=200))
    rig.add(request("r", tokens=200))
    rig.step()
    assert rig.prefiller.stats().waiting == 1

    rig.cancel("r")

    assert rig.prefiller.stats().waiting == 0
    assert_gone(rig, "r")
    assert len(rig.tokens("first")) == 5


def test_cancel_in_the_middle_of_its_prompt(rig: Rig) -> None:
    rig.add(request("r", tokens=200))
    rig.step()
    assert rig.prefiller.stats().running == 1
    assert rig.prefiller.stats().pages["full"].held > 0

    rig.cancel("r")

    rig.prefiller._pages.assert_idle()
    assert_gone(rig, "r")


def test_cancel_while_its_pages_are_leased_and_not_read(rig: Rig) -> None:
    rig.add(request("r"))
    (handoff,) = rig.prefiller.step()
    assert rig.leases == 1

    rig.cancel(handoff.request_id)

    assert rig.leases == 0
    assert_gone(rig, "r")


def test_cancel_while_it_waits_for_pages_in_decode(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"max_requests": 1})
    rig.add(request("first", max_tokens=50))
    rig.add(request("r"))
    rig.until(lambda: rig.decoding("first"))
    assert rig.phases() == {"r": "waiting"}

    rig.cancel("r")

    assert rig.phases() == {}
    assert_gone(rig, "r")
    assert len(rig.tokens("first")) == 50


def test_cancel_while_its_pages_are_read(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    held = rig.decoder.stats().pages["full"].held

    rig.cancel("r")

    assert rig.phases() == {"r": "draining"}
    assert rig.decoder.stats().pages["full"].quarantined == held > 0
    rig.wait(5.0)
    assert rig.decoder.stats().pages["full"].quarantined == held, "the read is still under way"
    rig.wire.stalled = False
    assert_gone(rig, "r")


def test_cancel_while_its_release_is_not_answered(rig: Rig) -> None:
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "releasing"})

    rig.cancel("r")

    assert rig.phases() == {}
    assert_gone(rig, "r")


@pytest.mark.parametrize("times", [1, 3])
def test_cancel_again_while_its_read_drains(rig: Rig, times: int) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})

    for _ in range(times + 1):
        rig.cancel("r")

    assert rig.decoder.stats().counters.cancelled == 1
    rig.wire.stalled = False
    assert_gone(rig, "r")


def test_cancel_while_it_decodes(rig: Rig) -> None:
    rig.add(request("r", max_tokens=50))
    rig.until(lambda: rig.decoding("r"))

    rig.cancel("r")

    rig.decoder._pages.assert_idle()
    assert_gone(rig, "r")


def test_cancel_after_it_has_finished(rig: Rig) -> None:
    rig.add(request("r"))
    rig.run()

    rig.cancel("r")

    assert len(rig.tokens("r")) == 5
    assert rig.decoder.stats().counters.cancelled == rig.prefiller.stats().counters.cancelled == 0


def test_cancel_before_its_first_token_was_sent(rig: Rig) -> None:
    rig.add(request("r"))
    (handoff,) = rig.prefiller.step()
    rig.decoder.add(rig.requests["r"].request, handoff)

    rig.cancel("r")

    rig.run()
    assert rig.chunks["r"] == []


def test_pages_that_another_prompt_has_reused_are_never_decoded(rig: Rig) -> None:
    """Prefill cancels a request that decode still reads: the bytes are another prompt's, and the answer says so."""
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    rig.prefiller.cancel("r")
    rig.add(request("other"))
    rig.step()
    rig.wire.stalled = False

    rig.run()

    assert [*rig.lost()] == ["r"]
    assert len(rig.tokens("r")) == 1, "the first token, which came with the handoff"
    assert len(rig.tokens("other")) == 5


def test_cancelling_an_unknown_request_changes_nothing(rig: Rig) -> None:
    rig.cancel("nobody")

    assert rig.idle
