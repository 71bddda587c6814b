"""What a reply can tell beside its text: alternatives, the prompt's own odds, several answers, what was reused."""

import asyncio
import contextlib
import time
from dataclasses import replace

import grpc
import pytest

from cluster.client import generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.answers import answers
from cluster.serving.gateway import Gateway
from engine.config import GatewayConfig
from engine.errors import BadRequest
from engine.types import Ended, FinishReason, Request, Sampling, StopRules
from policy.request_state import RequestState
from tests.cluster.conftest import Service, text, tokens
from tests.cluster.doubles import Anywhere, Script, ScriptedPools, chunk
from tests.oracle import Oracle

STOP = FinishReason.STOP
PROMPT = "def read(path):\n    with open(path) as file:\n        return json.load(file)\n" * 4
REQUEST = Request(id="r", prompt=(5, 6), sampling=Sampling(), stop=StopRules(max_tokens=9))


def test_the_alternatives_at_every_token_are_the_models_own(shipped: Service) -> None:
    replies = shipped.ask(PROMPT, temperature=0.0, max_tokens=6, top_logprobs=3)

    tops = [top for reply in replies for top in reply.top_logprobs]
    logprobs = [logprob for reply in replies for logprob in reply.logprobs]
    prompt = tuple(shipped.client.tokenize(pb.TokenizeRequest(prompt=PROMPT)))
    oracle = Oracle(shipped.config.model.path)
    assert [top.token_ids[0] for top in tops] == tokens(replies), "greedy takes the first"
    assert [top.logprobs[0] for top in tops] == pytest.approx(logprobs, abs=1e-5)
    for i, top in enumerate(tops):
        said = tokens(replies)[:i]
        expected = [oracle.logprobs(prompt, [*said, other])[-1].item() for other in top.token_ids]
        assert list(top.logprobs) == pytest.approx(expected, abs=1e-4)
        assert len(expected) == 3
    assert not [top for reply in shipped.ask(PROMPT, max_tokens=2) for top in reply.top_logprobs]


def test_the_prompts_own_logprobs_come_with_the_first_reply(shipped: Service) -> None:
    prompt = tuple(shipped.client.tokenize(pb.TokenizeRequest(prompt=PROMPT)))

    replies = shipped.ask(PROMPT, temperature=0.0, max_tokens=3, prompt_logprobs=True)

    expected = Oracle(shipped.config.model.path).logprobs(prompt[:1], list(prompt[1:])).tolist()
    assert list(replies[0].prompt_logprobs) == pytest.approx(expected, abs=1e-4)
    assert not any(reply.prompt_logprobs for reply in replies[1:])


def test_several_answers_are_those_of_their_seeds(shipped: Service) -> None:
    options = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}

    together = shipped.client.generate_once(generate_request(PROMPT, seed=7, n=4, **options)).answers
    streamed = shipped.ask(PROMPT, seed=7, n=4, **options)
    alone = [shipped.ask(PROMPT, seed=7 + i, **options) for i in range(4)]

    assert [answer.index for answer in together] == [0, 1, 2, 3]
    assert [answer.text for answer in together] == [text(replies) for replies in alone]
    assert len({answer.text for answer in together}) == 4
    for index in range(4):
        assert tokens([reply for reply in streamed if reply.index == index]) == tokens(alone[index])
    assert all(answer.usage.completion_tokens == 12 for answer in together)


def test_a_known_beginning_is_counted_and_tenants_do_not_share_it(shipped: Service) -> None:
    def cached(salt: str) -> int:
        """The most of three times: two replicas take turns."""
        asked = [shipped.ask(PROMPT, temperature=0.0, max_tokens=2, cache_salt=salt)[-1] for _ in range(3)]
        return max(reply.usage.cached_tokens for reply in asked)

    known = cached("")
    before = shipped.wait_idle()

    assert known >= 64
    first = shipped.ask(PROMPT, temperature=0.0, max_tokens=2, cache_salt="another")[-1]
    assert first.usage.cached_tokens == 0
    assert cached("another") == known
    after = shipped.wait_idle()
    for role in ("prefill", "decode"):
        hits = [
            sum(r.counters.prefix_hit_tokens for r in stats.replicas if r.identity.role == role)
            for stats in (before, after)
        ]
        assert hits[1] > hits[0]


def test_a_deadline_ends_the_request_in_both_pools(shipped: Service) -> None:
    request = generate_request(PROMPT, temperature=0.0, max_tokens=4000, ignore_eos=True, deadline_seconds=1.0)

    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as late:
        list(shipped.client.generate(request))

    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 1.0 <= time.monotonic() - began < 10.0
    shipped.assert_idle_and_consistent()


def merged(scripts: list[Script]) -> list[tuple[int, tuple[int, ...]]]:
    """(answer, tokens) of each chunk, one script for each answer."""
    pools = ScriptedPools(scripts)

    async def collect() -> list[tuple[int, tuple[int, ...]]]:
        gateway = Gateway(pools, Anywhere(), GatewayConfig(retries=0))
        states = [RequestState(replace(REQUEST, id=f"r-{i}"), time.monotonic(), "", i) for i in range(len(scripts))]
        return [(state.index, said.tokens) async for state, said in answers(gateway, states)]

    try:
        return asyncio.run(collect())
    finally:
        assert all(stream.cancelled for stream in pools.streams)


def test_answers_are_merged_as_they_come() -> None:
    said = merged([[chunk(1), 0.2, chunk(2, finish=STOP)], [chunk(3), chunk(4, finish=STOP)]])

    assert said == [(0, (1,)), (1, (3,)), (1, (4,)), (0, (2,))]


def test_the_others_set_out_when_the_first_has_begun() -> None:
    assert merged([[0.1, chunk(1, finish=STOP)], [chunk(2, finish=STOP)]]) == [(0, (1,)), (1, (2,))]


@pytest.mark.parametrize("which", [0, 1])
def test_if_one_answer_fails_so_do_all(which: int) -> None:
    scripts: list[Script] = [[chunk(1), 5.0, chunk(2, finish=STOP)] for _ in range(2)]
    scripts[which] = [chunk(3), 0.05, Ended(request_id="any", error=BadRequest("max_tokens", "no"))]

    with pytest.raises(BadRequest, match="max_tokens: no"):
        merged(scripts)


def test_a_caller_that_leaves_ends_every_answer() -> None:
    pools = ScriptedPools([[chunk(1), 60.0], [chunk(2), 60.0], [60.0]])

    async def leave() -> None:
        states = [RequestState(replace(REQUEST, id=f"r-{i}"), time.monotonic(), "", i) for i in range(3)]
        async with contextlib.aclosing(answers(Gateway(pools, Anywhere(), GatewayConfig()), states)) as spoken:
            assert [(await anext(spoken))[0].index for _ in range(2)] == [0, 1]
        assert len(pools.streams) == 6
        assert all(stream.cancelled for stream in pools.streams)
        assert len(asyncio.all_tasks()) == 1, "nothing goes on without the caller"

    asyncio.run(leave())
