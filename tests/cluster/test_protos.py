"""Protos to nouns and back, without a cluster: every field arrives where it belongs."""

import math
import re
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench.docs import field_docstrings
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.protos import answers_of, joined, reply_of, request_of
from engine.config import GatewayConfig
from engine.errors import BadRequest, UnknownModel
from engine.stats import (
    Acceptance,
    Counters,
    Forecast,
    GatewayCounters,
    Identity,
    Leases,
    PageCounts,
    PrefillQueue,
    ReplicaStats,
    Transfers,
)
from engine.text import Text
from engine.types import (
    NO_LIMIT,
    Chunk,
    DecodeTimings,
    FinishReason,
    PrefillTimings,
    Request,
    Sampling,
    StopRules,
)
from policy.request_state import RequestState
from tests.checkpoints import byte_tokenizer
from tests.cluster.doubles import handoff
from tests.engine.test_types import MODEL as SMALL

TEXT = Text(byte_tokenizer())
MODEL = replace(SMALL, vocab_size=300, max_tokens=100)
GATEWAY = GatewayConfig(default_max_tokens=40, request_seconds=50.0)


def asked(**fields: object) -> Request:
    return request_of(pb.GenerateRequest(**{"token_ids": pb.TokenIds(ids=[5, 6, 7]), **fields}), TEXT, MODEL, GATEWAY)


def test_every_field_of_a_request_arrives() -> None:
    sampling = pb.Sampling(
        temperature=0.5,
        top_k=4,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.125,
        logit_bias={9: 1.0, 2: -2.0},
        bad_words=[pb.TokenIds(ids=[1, 2]), pb.TokenIds(ids=[3])],
        seed=11,
        top_logprobs=6,
    )

    request = asked(
        sampling=sampling,
        max_tokens=17,
        min_tokens=3,
        stop=["a", "b"],
        stop_token_ids=[8],
        ignore_eos=True,
        priority=-4,
        deadline_seconds=7.5,
        cache_salt="tenant",
        prompt_logprobs=True,
        speculation=pb.Speculation(max_tokens=3),
        request_id="mine",
    )

    assert replace(request, id="") == Request(
        id="",
        prompt=(5, 6, 7),
        sampling=Sampling(
            temperature=0.5,
            top_k=4,
            top_p=0.75,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.125,
            logit_bias=((2, -2.0), (9, 1.0)),
            bad_words=((1, 2), (3,)),
            seed=11,
            seeded=True,
            top_logprobs=6,
        ),
        stop=StopRules(max_tokens=17, min_tokens=3, stop=("a", "b"), stop_token_ids=(8,), ignore_eos=True),
        priority=-4,
        seconds_left=7.5,
        cache_salt="tenant",
        prompt_logprobs=True,
        max_drafts=3,
    )
    assert request.id.startswith("mine-")


def test_what_is_not_set_has_the_documented_default() -> None:
    request, other = asked(), asked()

    plain = Sampling(temperature=1.0, seed=request.sampling.seed)
    assert replace(request, id="") == Request(
        id="", prompt=(5, 6, 7), sampling=plain, stop=StopRules(max_tokens=40), seconds_left=50.0
    )
    assert request.id != other.id
    assert request.sampling.seed != other.sampling.seed


@pytest.mark.parametrize(("length", "most"), [(50, 40), (70, 30), (99, 1)])
def test_the_default_of_max_tokens_is_cut_to_what_the_model_still_takes(length: int, most: int) -> None:
    assert asked(token_ids=pb.TokenIds(ids=[5] * length)).stop.max_tokens == most


@pytest.mark.parametrize(("wished", "granted"), [(50.5, 50.0), (49.5, 49.5), (math.inf, 50.0)])
def test_a_deadline_is_never_longer_than_the_gateways_own(wished: float, granted: float) -> None:
    assert asked(deadline_seconds=wished).seconds_left == granted


def test_other_answers_differ_in_name_and_seed_alone() -> None:
    """Answer i has seed + i, which wraps at 2**63. Only the first one is asked what the model thinks of the prompt."""
    request = asked(sampling=pb.Sampling(seed=2**63 - 2), prompt_logprobs=True)

    first, *others = answers_of(pb.GenerateRequest(n=3), request)

    assert first is request
    for i, (one, seed) in enumerate(zip(others, (2**63 - 1, 0), strict=True), start=1):
        sampling = replace(request.sampling, seed=seed)
        assert one == replace(request, id=f"{request.id}-{i}", sampling=sampling, prompt_logprobs=False)


@pytest.mark.parametrize(
    ("error", "field", "fields"),
    [
        (UnknownModel, "model", {"model": "another"}),
        (BadRequest, "deadline_seconds", {"deadline_seconds": 0.0}),
        (BadRequest, "prompt", {"token_ids": pb.TokenIds(ids=[5] * 100)}),
        (BadRequest, "top_p", {"sampling": pb.Sampling(top_p=2.0)}),
        (BadRequest, "token_ids", {"token_ids": pb.TokenIds()}),
        (BadRequest, "prompt", {"token_ids": None}),
        (BadRequest, "request_id", {"request_id": "a/b"}),
        (BadRequest, "speculation.max_tokens", {"speculation": pb.Speculation(max_tokens=-1)}),
        (BadRequest, "speculation.max_tokens", {"speculation": pb.Speculation(max_tokens=-1, off=True)}),
    ],
)
def test_what_cannot_be_served_is_refused_by_field(error: type, field: str, fields: dict[str, object]) -> None:
    assert asked(model="m").prompt == (5, 6, 7)

    with pytest.raises(error, match=f"^{field}: "):
        asked(**fields)


@pytest.mark.parametrize(
    ("speculation", "most"),
    [
        (pb.Speculation(), NO_LIMIT),
        (pb.Speculation(max_tokens=0), 0),
        (pb.Speculation(off=True), 0),
        (pb.Speculation(off=True, max_tokens=5), 0),
    ],
)
def test_speculation_can_be_limited_or_off(speculation: pb.Speculation, most: int) -> None:
    assert asked(speculation=speculation).max_drafts == most


def test_there_are_one_to_sixty_four_answers_and_only_one_that_is_greedy() -> None:
    drawn, greedy = asked(), asked(sampling=pb.Sampling(temperature=0))

    assert [len(answers_of(pb.GenerateRequest(n=n), drawn)) for n in (1, 64)] == [1, 64]
    assert answers_of(pb.GenerateRequest(n=1), greedy) == answers_of(pb.GenerateRequest(), greedy) == [greedy]
    for n, request in ((0, drawn), (65, drawn), (2, greedy)):
        with pytest.raises(BadRequest, match=r"^n: "):
            answers_of(pb.GenerateRequest(n=n), request)


def test_a_reply_says_what_its_chunk_says_and_the_last_one_accounts_for_all() -> None:
    state = RequestState(
        asked(), arrived_at=time.monotonic() // 1 - 5.0, pool="default", index=2, prefills=3, preemptions=1
    )
    told = handoff(state.request)
    timings = PrefillTimings(queue_seconds=0.25, prefill_seconds=0.5)
    state.handoff = replace(told, timings=timings)
    state.cached_tokens, state.prompt_logprobs = 2, (-1.0, -2.0)
    state.first_token_at = state.arrived_at + 1.0
    took = DecodeTimings(wait_seconds=1, transfer_seconds=2, decode_seconds=4, moved_bytes=8, moved_pages=16)
    top = (((9, -0.5), (4, -1.5)),)
    became = Acceptance(10, 7, 5, [4, 3], [3, 2], steps=4, synthetic=True)
    end = {"finish": FinishReason.STOP, "timings": took, "acceptance": became}
    chunks = [
        Chunk(request_id="r", tokens=(9,), logprobs=(-0.5,), text="x", top=top),
        Chunk(request_id="r", tokens=(4,), logprobs=(-0.25,), text="y", **end),
    ]

    replies = []
    state.first_chunk = chunks[0]
    for chunk in chunks:
        state.tokens += chunk.tokens
        replies.append(reply_of(chunk, state))

    first, last = replies
    told_top = [pb.Alternatives(token_ids=[9, 4], logprobs=[-0.5, -1.5])]
    said = {"text": "x", "token_ids": [9], "logprobs": [-0.5], "index": 2}
    assert first == pb.GenerateReply(**said, top_logprobs=told_top, prompt_logprobs=[-1.0, -2.0])
    assert (last.finish_reason, last.index, [*last.prompt_logprobs]) == (pb.FINISH_REASON_STOP, 2, [])
    assert not first.HasField("acceptance")
    assert last.acceptance == pb.Acceptance(
        steps=4, drafted=10, verified=7, accepted=5, verified_at=[4, 3], accepted_at=[3, 2], synthetic=True
    )
    assert last.usage == pb.Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=2)
    measured = last.timings
    assert 5.0 <= measured.total_seconds < 60.0
    measured.total_seconds = 0.0
    assert measured == pb.Timings(
        queue_seconds=0.25,
        prefill_seconds=0.5,
        wait_seconds=1,
        transfer_seconds=2,
        decode_seconds=4,
        moved_bytes=8,
        moved_pages=16,
        first_token_seconds=1.0,
        prefills=3,
        preemptions=1,
    )


def test_replies_are_joined_answer_by_answer() -> None:
    replies = [
        pb.GenerateReply(index=1, text="a", token_ids=[1], logprobs=[-1.0]),
        pb.GenerateReply(index=0, text="x", token_ids=[7]),
        pb.GenerateReply(index=1, text="b", token_ids=[2], finish_reason=pb.FINISH_REASON_STOP),
        pb.GenerateReply(index=0, text="y", finish_reason=pb.FINISH_REASON_LENGTH),
    ]

    assert joined(replies) == pb.Answers(
        answers=[
            pb.GenerateReply(index=0, text="xy", token_ids=[7], finish_reason=pb.FINISH_REASON_LENGTH),
            pb.GenerateReply(
                index=1, text="ab", token_ids=[1, 2], logprobs=[-1.0], finish_reason=pb.FINISH_REASON_STOP
            ),
        ]
    )


GROUPS = [
    ReplicaStats,
    Identity,
    Counters,
    PageCounts,
    PrefillQueue,
    Forecast,
    Transfers,
    Leases,
    GatewayCounters,
    Acceptance,
]


def test_every_statistic_of_a_replica_crosses() -> None:
    def counted(kind: type[Any]) -> Any:
        numbers = {f.name: n for n, f in enumerate(fields(kind), start=1) if f.type in (int, float)}
        return kind(**numbers)

    stats = ReplicaStats(
        identity=Identity(role="decode", replica="r", pool="p", agent="a", emulated="groq-3-lpx", synthetic=True),
        waiting=3,
        counters=replace(counted(Counters), verified_at=[5, 3], accepted_at=[4, 1]),
        pages={"full": PageCounts(total=9, free=4, held=3, quarantined=2, cached=1)},
        prefill_queue=replace(counted(PrefillQueue), queued_tokens={-1: 7, 0: 9}),
        forecast=replace(counted(Forecast), request_rates={1: 80.5, 8: 20.25}),
        transfers=counted(Transfers),
        leases=counted(Leases),
    )

    replica = pb.ReplicaStats(**asdict(stats))

    assert (replica.waiting, replica.running) == (3, 0)
    for group in ("identity", "counters", "prefill_queue", "forecast", "transfers", "leases"):
        for name, value in vars(getattr(stats, group)).items():
            assert value, f"{group}.{name} is not set, so it would not be missed"
            assert getattr(getattr(replica, group), name) == value
    assert replica.pages["full"] == pb.PageCounts(total=9, free=4, held=3, quarantined=2, cached=1)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_statistics_has_the_same_fields_and_texts_in_the_api(group: type[Any]) -> None:
    """The proto is the reference of the API, the dataclass is where a statistic is declared."""
    text = (Path(__file__).parents[2] / "cluster/proto/sparkpool.proto").read_text()
    found = re.search(rf"((?://[^\n]*\n)*)message {group.__name__} \{{\n(.*?)\n\}}", text, re.DOTALL)
    assert found is not None, f"the proto has no message {group.__name__}"
    told = {name: plain(comment) for comment, name in re.findall(r"((?: *//[^\n]*\n)*)[^;/]*? (\w+) = \d+;", found[2])}

    assert plain(found[1]) == " ".join((group.__doc__ or "").split())
    helps = {name: " ".join(help_.split()) for name, help_ in field_docstrings(group).items()}
    assert list(told) == [field.name for field in fields(group)]
    assert {name: comment for name, comment in told.items() if comment} == helps


def plain(comment: str) -> str:
    return " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines()).strip()
