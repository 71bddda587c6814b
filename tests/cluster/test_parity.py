"""Tokens through gRPC, prefill, NIXL and decode are those of transformers.generate, whatever happens on the way."""

import inspect
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.text import Text
from local import Builder
from tests.checkpoints import DEEPSEEK_V2, DEEPSEEK_V3, LLAMA, QWEN3, QWEN3_SLIDING, save_random
from tests.cluster.conftest import Deploy, Service, tokens
from tests.drafters import save_random_drafter
from tests.oracle import Oracle, assert_same

MODELS: dict[str, tuple[PretrainedConfig | None, Path | str | None]] = {  # with its drafter
    "shipped": (None, None),
    "shipped-dspark": (None, SHIPPED_DRAFTER),
    "deepseek_v2": (DEEPSEEK_V2, None),
    "deepseek_v3": (DEEPSEEK_V3, None),
    "deepseek_v3-mtp": (DEEPSEEK_V3, "mtp"),
    "llama": (LLAMA, None),
    "qwen3": (QWEN3, None),
    "qwen3-dspark": (QWEN3, "random"),
    "qwen3_sliding": (QWEN3_SLIDING, None),
}
PAGE_TOKENS, DECODE_PAGES = 16, 28
LENGTHS = [1, 15, 16, 17, 100, 230, 90, 64, 33, 150, 128, 111, 2, 200, 97, 48]
SHARED = 96  # tokens that every other prompt begins with, if it is long enough


@pytest.fixture(scope="module", params=MODELS)
def tight(
    request: pytest.FixtureRequest, deploy: Deploy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A model over so few decode pages that requests which were admitted together cannot all stay."""
    config, drafter = MODELS[request.param]
    path = save_random(config, tmp_path_factory.mktemp(request.param)) if config else SHIPPED_MODEL
    if drafter == "random":
        drafter = save_random_drafter(path, tmp_path_factory.mktemp("drafter"))
    content = {
        "model": {"path": str(path), "drafter": drafter, "mtp_drafts": 3, "page_tokens": PAGE_TOKENS},
        "prefill": {"threads": 1, "cache_bytes": "16MiB", "chunk_tokens": 96},
    }
    ample = Config.parse(content)
    layout = Builder(ample, ample.prefill).layout
    page_bytes = sum(group.page_bytes for group in layout.groups.values())
    decode = {"threads": 1, "cache_bytes": (DECODE_PAGES + 1) * page_bytes, "local_chunk_tokens": 0}
    settings = Config.parse({**content, "decode": {"default": decode}})
    with deploy(f"tight-{request.param}", settings) as service:
        yield service


def prompts_for(service: Service) -> list[list[int]]:
    """Random tokens for random weights, Python for the model that knows it; every other prompt begins alike."""
    if service.config.model.path == SHIPPED_MODEL:
        pool = list(Text.load(SHIPPED_MODEL).encode(inspect.getsource(json.decoder)))
    else:
        pool = random.Random(1).choices(range(256), k=4000)
    own = [pool[200 + 37 * i :][:length] for i, length in enumerate(LENGTHS)]
    return [prompt if i % 2 else (pool[:SHARED] + prompt)[: len(prompt)] for i, prompt in enumerate(own)]


def test_sixteen_at_once_answer_as_transformers_does(tight: Service) -> None:
    """Mixed lengths, chunked prefill, shared prefixes; pages run out, and requests are prefilled again."""
    prompts, max_tokens = prompts_for(tight), [40 + 7 * i for i in range(len(LENGTHS))]

    answers = tight.ask_all(prompts, max_tokens)

    assert_all_same(tight, prompts, max_tokens, answers)
    longest = max(prompts, key=len)
    for _ in range(2):  # how many of the sixteen found a prefix in decode depends on who was still there; this one does
        assert_all_same(tight, [longest], [4], tight.ask_all([longest], [4]))
    stats = tight.assert_idle_and_consistent()
    (decode,) = (replica for replica in stats.replicas if replica.identity.role == "decode")
    (prefill,) = (replica for replica in stats.replicas if replica.identity.role == "prefill")
    assert decode.counters.preempted == stats.gateway.preemptions > 0
    assert decode.counters.prefix_hit_tokens > SHARED
    assert prefill.counters.prefix_hit_tokens > SHARED
    assert (decode.counters.drafted > 0) == (tight.config.model.drafter is not None)
    assert max(map(len, prompts)) > tight.config.prefill.chunk_tokens


def test_seeded_answers_are_the_same_disturbed_or_not(tight: Service) -> None:
    prompts = prompts_for(tight)[-8:]
    before = tight.wait_idle().gateway.preemptions

    def ask(i: int, salt: str) -> list[int]:
        options = {"temperature": 1.0, "top_p": 0.95, "seed": i, "max_tokens": 100, "ignore_eos": True}
        return tokens(tight.ask(prompts[i], cache_salt=salt, **options))

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda i: ask(i, ""), range(len(prompts))))
    assert tight.wait_idle().gateway.preemptions > before
    alone = [ask(i, salt=f"nobody else {i}") for i in range(len(prompts))]

    assert together == alone


def test_pages_are_moved_between_every_two_replicas(shipped: Service) -> None:
    source = Text.load(SHIPPED_MODEL).encode(inspect.getsource(json.decoder))
    lengths, max_tokens = [1, 7, 63, 64, 65, 150, 700, 300], [40, 33, 20, 1, 48, 60, 30, 12]
    prompts = [list(source[i * 50 : i * 50 + length]) for i, length in enumerate(lengths)]

    answers = shipped.ask_all(prompts, max_tokens)

    assert_all_same(shipped, prompts, max_tokens, answers)
    stats = shipped.assert_idle_and_consistent()
    page_bytes = shipped.client.model().page_bytes["full"]
    decoders = [replica for replica in stats.replicas if replica.identity.role == "decode"]
    assert all(replica.transfers.reads > 0 for replica in decoders), "one decode replica did everything"
    assert sum(r.transfers.moved_bytes for r in decoders) == page_bytes * sum(r.transfers.moved_pages for r in decoders)


def assert_all_same(
    service: Service, prompts: list[list[int]], max_tokens: list[int], answers: list[list[int]]
) -> None:
    oracle = Oracle(service.config.model.path)
    ties = 0
    for prompt, most, answer in zip(prompts, max_tokens, answers, strict=True):
        ties += assert_same(answer, *oracle.greedy(tuple(prompt), most))
    assert ties == 0, f"{ties} of {len(prompts)} answers end in a tie: draw other prompts"
