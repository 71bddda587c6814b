"""Tests that the drafter's context of steps without drafts can be written late without an effect on drafts."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from decode import step_runner
from decode.plan import FixedPlanner
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.local.rig import MIB

EVERY, DRAFTS = 7, 3


class NowAndThen(FixedPlanner):
    """Drafts in every so many steps, and nothing in between."""

    def __init__(self) -> None:
        super().__init__(DRAFTS)
        self.steps = 0

    def drafts(self, load: Any) -> int:
        self.steps += 1
        return 0 if self.steps % EVERY else super().drafts(load)


def answered(monkeypatch: pytest.MonkeyPatch, late_steps: int, pages_mib: float) -> tuple[Pair, list[Tensor], int]:
    """Requests that come one after the other, with too few pages for all of them: the pair, the confidences of every
    block, and how many steps at most were put off."""
    monkeypatch.setattr(step_runner, "MAX_DEFERRED", late_steps)
    engine = {"cache_bytes": 64 * MIB, "threads": 1}
    decode = engine | {"cache_bytes": int(pages_mib * MIB), "max_requests": 8}
    model = {"path": SHIPPED_MODEL, "drafter": SHIPPED_DRAFTER, "page_tokens": 16}
    pair = Pair(Config.parse({"model": model, "prefill": engine, "decode": {"default": decode}}))
    decoder = cast(Any, pair.decoder)
    decoder._planner = decoder._observers[0] = NowAndThen()
    seen: list[Tensor] = []
    most = 0
    propose = decoder._runner.drafter.propose

    def watched(*arguments: Any) -> Any:
        block = propose(*arguments)
        seen.append(block.confidence_RK)
        return block

    decoder._runner.drafter.propose = watched
    texts = ["def add(a, b):\n    return", "import os\nimport sys\n\n\nclass Reader:\n", "for i in range(10):\n"]
    for n in range(12):
        prompt = pair.text.encode(texts[n % 3] + f"    value_{n} = {n}\n")
        stop = StopRules(max_tokens=20 + 9 * n, ignore_eos=True)
        pair.add(Request(id=str(n), prompt=prompt, sampling=Sampling(), stop=stop))
        for _ in range(6):
            pair.step()
            most = max(most, len(decoder._runner._deferred))
    pair.run()
    return pair, seen, most


@pytest.mark.parametrize("pages_mib", [0.7, 64])
def test_late_context_gives_the_same_drafts(monkeypatch: pytest.MonkeyPatch, pages_mib: float) -> None:
    at_once, expected, none = answered(monkeypatch, 1, pages_mib)
    late, found, most = answered(monkeypatch, 16, pages_mib)

    assert none == 0 and most > 3
    assert (late.decoder.stats().counters.preempted > 0) == (pages_mib < 64), "pages that went from hand to hand"
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert late.decoder.stats().counters.accepted_at == at_once.decoder.stats().counters.accepted_at
    assert late.decoder.stats().counters.accepted > 0
