"""Every disturbance at once, on every family: nobody can tell from its tokens.

Sixteen requests with a common beginning come in two waves over few pages: prompts go in chunks, pages are shared,
evicted and found again, the wire stalls, others are cancelled, and decode runs out of pages.
"""

import random
from pathlib import Path

import pytest
import torch

from engine.config import SHIPPED_MODEL, Config
from engine.models import LoadedModel, load_model
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING, save_random
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
PAGES = 36  # of 16 tokens in decode; all sixteen at their longest need 150, the longest alone 12


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FAMILIES[request.param]
    return SHIPPED_MODEL if config is None else save_random(config, tmp_path_factory.mktemp(request.param), seed=21)


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


def pair(path: Path, model: LoadedModel, decode_pages: int | None, sharing: bool) -> Pair:
    """Ample pages, or `decode_pages` of each group."""
    engine = {"prefix_caching": sharing, "cache_bytes": 16 * MIB}
    content = {"model": {"path": path, "page_tokens": PAGE}, "prefill": {**engine, "chunk_tokens": 24}}
    config = Config.parse({**content, "decode": {"default": engine}})
    if decode_pages is not None:
        groups = Builder(config, config.prefill, model).layout.groups.values()
        engine["cache_bytes"] = (decode_pages + 1) * sum(group.page_bytes for group in groups)
        config = Config.parse({**content, "decode": {"default": engine}})
    return Pair(config, builder=Builder(config, config.prefill, model))


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


def test_disturbed_requests_get_the_tokens_of_undisturbed_ones(checkpoint: Path) -> None:
    model = load_model(checkpoint, torch.float32, torch.device("cpu"))
    asked = requests()

    engines = pair(checkpoint, model, PAGES, sharing=True)
    disturbed(engines, asked)

    prefill, decode = engines.prefiller.stats(), engines.decoder.stats()
    assert min(decode.preempted, prefill.prefix_hit_tokens, decode.prefix_hit_tokens) > 0
    oracle, quiet = Oracle(checkpoint), pair(checkpoint, model, None, sharing=False)
    for one in asked:
        if one.sampling.greedy:
            assert assert_same(tokens(engines, one), *oracle.greedy(one.prompt, one.stop.max_tokens, eos=False)) == 0
        else:
            assert tokens(engines, one) == quiet.generate([one])[one.id]
