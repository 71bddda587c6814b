"""Speculation through the cluster: the same tokens as without, drafted and accepted as in one process, step by step."""

import argparse
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cluster.client import generate_request
from cluster.proto import sparkpool_pb2 as pb
from decode.record import read
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.text import Text
from engine.types import Request, Sampling, StopRules
from local import Pair
from tests.cluster.conftest import Deploy, Service, tokens
from tests.cluster.test_loss import assert_recovered, kill_all, wait_until

DRAFTS, MAX_TOKENS = 4, 40
PROMPTS = 32


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def config(records: Path) -> Config:
    engine = {"replicas": 2, "threads": 1, "cache_bytes": "32MiB"}
    decode = {**engine, "planner": "fixed", "fixed_drafts": DRAFTS, "record": records}
    model = {"drafter": SHIPPED_DRAFTER, "page_tokens": 16}
    return Config.parse({"model": model, "prefill": engine, "decode": {"default": decode}})


@pytest.fixture(scope="module")
def service(deploy: Deploy, config: Config) -> Iterator[Service]:
    with deploy("speculation", config) as service:
        yield service


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Python that begins in one of four ways and goes on in its own."""
    text = Text.load(SHIPPED_MODEL).encode(inspect.getsource(argparse))
    return [list(text[i % 4 * 100 :][:48] + text[1000 + 150 * i :][: 20 + 3 * i]) for i in range(PROMPTS)]


@pytest.fixture(scope="module")
def alone(config: Config, prompts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Of one process, one request after the other: the tokens of each, and how many drafts each step accepted."""
    section = config.decode["default"].model_copy(update={"record": None})
    pair = Pair(config.model_copy(update={"decode": {"default": section}}))
    found = []
    for i, prompt in enumerate(prompts):
        stop = StopRules(max_tokens=MAX_TOKENS, ignore_eos=True)
        one = Request(id=str(i), prompt=tuple(prompt), sampling=Sampling(), stop=stop, cache_salt=str(i))
        said = pair.generate([one])[one.id]
        found.append((said, [len(chunk.tokens) - 1 for chunk in pair.chunks[one.id]][1:]))
    return found


def ask(service: Service, prompt: list[int], **options: object) -> list[pb.GenerateReply]:
    return service.ask(prompt, **{"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True, **options})


@pytest.mark.parametrize("known", [False, True], ids=["computed", "found"])
@pytest.mark.parametrize("at_once", [1, 8, 32])
def test_every_step_accepts_as_many_drafts_as_in_one_process(
    service: Service,
    records: Path,
    prompts: list[list[int]],
    alone: list[tuple[list[int], list[int]]],
    at_once: int,
    known: bool,
) -> None:
    """With prefixes that nobody has, and again with those that are there by then."""
    hits, some = prefix_hits(service), range(PROMPTS if at_once > 1 else 6)

    def call(i: int, time: str) -> list[pb.GenerateReply]:
        salt = f"{at_once}-{'shared' if known else i}"
        return ask(service, prompts[i], request_id=f"{at_once}-{time}-{i}", cache_salt=salt)

    with ThreadPoolExecutor(at_once) as pool:
        for time in ("first", "again")[: 1 + known]:
            answers = list(pool.map(partial(call, time=f"{known}-{time}"), some))

    assert [tokens(answer) for answer in answers] == [alone[i][0] for i in some]
    accepted = {i: alone[i][1] for i in some}
    for i, answer in zip(some, answers, strict=True):
        told = answer[-1].acceptance
        assert (told.steps, told.accepted) == (len(accepted[i]), sum(accepted[i]))
    assert (prefix_hits(service) > hits) == known
    service.assert_idle_and_consistent()
    wait_until(lambda: recorded(records, f"{at_once}-{known}-{time}-") == accepted, seconds=5.0)


def test_a_request_can_limit_drafts_or_turn_them_off(service: Service, prompts: list[list[int]]) -> None:
    free = ask(service, prompts[0])
    some = ask(service, prompts[0], speculation=pb.Speculation(max_tokens=1))
    none = ask(service, prompts[0], speculation=pb.Speculation(off=True))

    assert tokens(free) == tokens(some) == tokens(none)
    places = [len(answer[-1].acceptance.verified_at) for answer in (free, some, none)]
    assert places == [DRAFTS, 1, 0]
    steps = [answer[-1].acceptance.steps for answer in (free, some, none)]
    assert steps[0] <= steps[1] < steps[2] == MAX_TOKENS - 1


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
def test_decode_replicas_die_in_mid_stream(
    service: Service, prompts: list[list[int]], options: dict[str, float]
) -> None:
    """Drafting begins again where they stopped, with the drafter's context from prefill."""
    options = {**options, "max_tokens": 150}
    undisturbed = tokens(ask(service, prompts[0], **options, speculation=pb.Speculation(off=True)))
    agents = {replica.identity.agent for replica in service.wait_for_replicas(4).replicas}

    request = generate_request(prompts[0], ignore_eos=True, **options)
    call = service.client.generate(request, timeout=120)
    replies = [next(call) for _ in range(5)]
    kill_all(service, "Decode-default")
    replies += list(call)

    assert tokens(replies) == undisturbed
    assert replies[-1].timings.prefills == 2
    assert replies[-1].acceptance.accepted > 0
    assert_recovered(service, agents, lost=2)


def prefix_hits(service: Service) -> int:
    return sum(replica.counters.prefix_hit_tokens for replica in service.client.stats().replicas)


def recorded(records: Path, names: str) -> dict[int, list[int]]:
    """Drafts accepted by each step of the requests whose names begin like that, from the replicas' own files."""
    found: dict[int, list[int]] = {}
    for file in records.glob("*.jsonl"):
        for step in read(file)[1]:
            for name, accepted in zip(step.requests, step.accepted, strict=True):
                if name.startswith(names):
                    number = int(name.removeprefix(names).partition("-")[0])  # the gateway adds to names
                    found.setdefault(number, []).append(accepted)
    return found
