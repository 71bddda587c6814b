"""Tests every disturbance at once, on every family and with every drafter: tokens stay the same.

Sixteen requests with a common beginning come in two waves over few pages: prompts go in chunks, pages are shared,
evicted and found again, the wire stalls, others are cancelled, and decode runs out of pages.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.models import LoadedModel, load_model
from engine.steptime import Curve, ProfiledTimes
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair, build
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING, save_random
from tests.drafters import KnowingBuilder, save_random_drafter
from tests.local.rig import MIB
from tests.oracle import Oracle, assert_same

FAMILIES = {
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "llama": LLAMA,
    "qwen3": QWEN3,
    "qwen3_sliding": QWEN3_SLIDING,
    "shipped": None,
}
PAGE, WHOLE_ANSWER = 16, 40
CHEAP = ProfiledTimes({}, 64, Curve((1,), (0.01,)), {1: Curve((1, 100), (1.0, 2.0))})  # drafting always pays
PAGES = 36  # of 16 tokens in decode; all sixteen at their longest need 150, the longest alone 12


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FAMILIES[request.param]
    return SHIPPED_MODEL if config is None else save_random(config, tmp_path_factory.mktemp(request.param), seed=21)


everywhere = pytest.mark.parametrize("checkpoint", FAMILIES, indirect=True)


def requests() -> list[Request]:
    """Half greedy, half seeded; every second pair of them shares two pages and a half."""
    rng = random.Random(6)
    system = [rng.randrange(256) for _ in range(5 * PAGE // 2)]
    asked = []
    for i, length in enumerate([1, 3, 15, 16, 17, 24, 40, 48, 49, 64, 80, 100, 31, 33, 5, 130]):
        tail = [rng.randrange(256) for _ in range(length)]
        drawn = Sampling(temperature=0.9, top_p=0.95, frequency_penalty=0.3, seed=i, seeded=True)
        asked.append(
            Request(
                id=f"r{i}",
                prompt=tuple(tail if i % 4 == 3 else [*system, *tail]),
                sampling=drawn if i % 2 else Sampling(),
                stop=StopRules(max_tokens=WHOLE_ANSWER - i % 5, ignore_eos=True),
                priority=i % 3 - 1,
            )
        )
    return asked


def quiet(path: Path, model: LoadedModel) -> Pair:
    """Ample pages, nothing shared, no speculation."""
    engine = {"prefix_caching": False, "cache_bytes": 16 * MIB}
    config = Config.parse({"model": {"path": path}, "prefill": engine, "decode": {"default": engine}})
    return Pair(config, builder=Builder(config, config.prefill, model))


def tight(model: LoadedModel, drafting: dict[str, Any], decode: dict[str, Any]) -> Config:
    """`PAGES` of each group in decode."""
    content = {
        "model": {"path": model.files[0].parent, "page_tokens": PAGE, **drafting},
        "prefill": {"cache_bytes": 16 * MIB, "chunk_tokens": 24},
    }
    config = Config.parse(content)
    groups = Builder(config, config.prefill, model).layout.groups.values()
    cache_bytes = (PAGES + 1) * sum(group.page_bytes for group in groups)
    return Config.parse({**content, "decode": {"default": {"cache_bytes": cache_bytes, **decode}}})


def disturbed(engines: Pair, asked: list[Request]) -> None:
    others = [Request(**{**vars(one), "id": f"other {one.id}"}) for one in asked[::3]]
    for wave, steps in ((asked[:10] + others, 12), (asked[10:], 6)):
        for one in wave:
            engines.add(one)
        for step in range(steps):
            engines.wire.stalled = step % 4 == 1
            engines.step()
        for one in others[::2]:
            engines.cancel(one.id)
    for one in others:
        engines.cancel(one.id)
    engines.wire.stalled = False
    engines.run()
    assert not engines.errors


def tokens(engines: Pair, one: Request) -> list[int]:
    return [token for chunk in engines.chunks[one.id] for token in chunk.tokens]


def assert_nobody_can_tell(engines: Pair, asked: list[Request], expected: dict[str, list[int]]) -> None:
    """The scenario, that it disturbed, and the tokens of an undisturbed run without speculation."""
    disturbed(engines, asked)

    prefill, decode = engines.prefiller.stats(), engines.decoder.stats()
    assert min(decode.counters.preempted, prefill.counters.prefix_hit_tokens, decode.counters.prefix_hit_tokens) > 0
    assert {one.id: tokens(engines, one) for one in asked} == expected


@everywhere
def test_disturbed_requests_get_the_tokens_of_undisturbed_ones(checkpoint: Path) -> None:
    model, asked = load_model(checkpoint, torch.float32, torch.device("cpu")), requests()
    expected = quiet(checkpoint, model).generate(asked)
    config = tight(model, {}, {})

    assert_nobody_can_tell(Pair(config, builder=Builder(config, config.prefill, model)), asked, expected)

    oracle = Oracle(checkpoint)
    for one in asked:
        if one.sampling.greedy:
            assert assert_same(expected[one.id], *oracle.greedy(one.prompt, one.stop.max_tokens, eos=False)) == 0


@pytest.mark.parametrize(
    ("checkpoint", "drafter", "decode"),
    [
        ("shipped", "shipped", {"planner": "causal"}),
        ("shipped", "shipped", {"planner": "fixed", "fixed_drafts": 7}),
        ("shipped", "mtp", {"planner": "lagged"}),
        ("deepseek_v3", "random", {"planner": "lagged"}),
        ("deepseek_v3", "mtp", {"planner": "fixed"}),
        ("deepseek_v3", "knowing", {"planner": "causal"}),
        ("qwen3", "random", {"planner": "fixed"}),
        ("qwen3", "knowing", {"planner": "fixed", "fixed_drafts": 5}),
        ("qwen3_sliding", "random", {"planner": "causal"}),
        ("qwen3_sliding", "knowing", {"planner": "lagged"}),
    ],
    ids=str,
    indirect=["checkpoint"],
)
def test_disturbed_requests_with_speculation_get_the_tokens_of_undisturbed_ones(
    checkpoint: Path, drafter: str, decode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "profiled", lambda *_: CHEAP)
    model, asked = load_model(checkpoint, torch.float32, torch.device("cpu")), requests()
    expected = quiet(checkpoint, model).generate(asked)
    if drafter == "knowing":
        answers = [[*one.prompt, *expected[one.id]] for one in asked]
        config = tight(model, {}, decode)
        builder: Builder = KnowingBuilder(config, answers, error_every=3, model=model)
    else:
        source: Any = {"shipped": SHIPPED_DRAFTER, "mtp": "mtp"}.get(drafter)
        source = source or save_random_drafter(checkpoint, tmp_path)
        config = tight(model, {"drafter": source, "mtp_drafts": 3}, decode)
        builder = Builder(config, config.prefill, model)
    engines = Pair(config, builder=builder)

    assert_nobody_can_tell(engines, asked, expected)

    stats = engines.decoder.stats()
    assert stats.counters.drafted >= stats.counters.verified >= stats.counters.accepted
    assert drafter == "random" or stats.counters.accepted > 50, "nothing was gained, so nothing was tried"
