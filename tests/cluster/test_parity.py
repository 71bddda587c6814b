"""Greedy tokens through gRPC, prefill, NIXL and decode equal transformers.generate, one prompt at a time."""

import inspect
import json
import random

from engine.text import Text
from tests.cluster.conftest import Service
from tests.oracle import Oracle, assert_same


def test_random_models_answer_as_transformers_does(random_model: Service) -> None:
    draw = random.Random(1)
    lengths, max_tokens = [1, 15, 16, 17, 100, 230, 330, 64], [40, 33, 20, 1, 48, 60, 30, 12]
    prompts = [[draw.randrange(256) for _ in range(length)] for length in lengths]

    answers = random_model.ask_all(prompts, max_tokens)

    assert_all_same(random_model, prompts, max_tokens, answers)
    random_model.assert_idle_and_consistent()


def test_the_shipped_model_answers_as_transformers_does(shipped: Service) -> None:
    source = Text.load(shipped.config.model.path).encode(inspect.getsource(json.decoder))
    lengths, max_tokens = [1, 7, 63, 64, 65, 150, 700, 300], [40, 33, 20, 1, 48, 60, 30, 12]
    prompts = [list(source[i * 50 : i * 50 + length]) for i, length in enumerate(lengths)]

    answers = shipped.ask_all(prompts, max_tokens)

    assert_all_same(shipped, prompts, max_tokens, answers)
    stats = shipped.assert_idle_and_consistent()
    page_bytes = shipped.client.model().page_bytes["full"]
    decoders = [replica for replica in stats.replicas if replica.role == "decode"]
    assert all(replica.reads > 0 for replica in decoders), "one decode replica did everything"
    assert sum(r.moved_bytes for r in decoders) == page_bytes * sum(r.moved_pages for r in decoders)


def assert_all_same(
    service: Service, prompts: list[list[int]], max_tokens: list[int], answers: list[list[int]]
) -> None:
    oracle = Oracle(service.config.model.path)
    ties = 0
    for prompt, most, answer in zip(prompts, max_tokens, answers, strict=True):
        ties += assert_same(answer, *oracle.greedy(tuple(prompt), most))
    assert ties == 0, f"{ties} of {len(prompts)} answers end in a tie: draw other prompts"
