"""Converts protos to the types of the engine and back. This file and `Request.check` find all errors of clients."""

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, replace

from cluster.proto import sparkpool_pb2 as pb
from engine.config import GatewayConfig
from engine.errors import BadRequest, UnknownModel
from engine.facts import ModelFacts
from engine.text import Text
from engine.types import NO_LIMIT, Chunk, FinishReason, Request, Sampling, StopRules
from policy.request_state import RequestState

FINISH_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
REQUEST_ID = re.compile(r"[\w.:-]{0,64}", re.ASCII)
MAX_ANSWERS = 64


def request_of(proto: pb.GenerateRequest, text: Text, model: ModelFacts, gateway: GatewayConfig) -> Request:
    """Return the request for the pools. Raises BadRequest or UnknownModel."""
    if proto.model not in ("", model.name):
        raise UnknownModel(f"model: {proto.model!r} is not served here; {model.name!r} is")
    prompt = prompt_of(proto, text)
    room = model.max_tokens - len(prompt)
    request = Request(
        id=_request_id(proto.request_id),
        prompt=prompt,
        sampling=_sampling_of(proto.sampling),
        stop=StopRules(
            max_tokens=proto.max_tokens if proto.HasField("max_tokens") else min(gateway.default_max_tokens, room),
            min_tokens=proto.min_tokens,
            stop=tuple(proto.stop),
            stop_token_ids=tuple(proto.stop_token_ids),
            ignore_eos=proto.ignore_eos,
        ),
        priority=proto.priority,
        seconds_left=_seconds_of(proto, gateway),
        cache_salt=proto.cache_salt,
        prompt_logprobs=proto.prompt_logprobs,
        max_drafts=_max_drafts_of(proto.speculation),
    )
    request.check(model)
    return request


def answers_of(proto: pb.GenerateRequest, request: Request) -> list[Request]:
    """Return one request for each of the `n` answers; the first is `request` itself. Raises BadRequest."""
    count = proto.n if proto.HasField("n") else 1
    if not 1 <= count <= MAX_ANSWERS:
        raise BadRequest("n", f"must be in [1, {MAX_ANSWERS}], is {count}")
    if count > 1 and request.sampling.greedy:
        raise BadRequest("n", "must be 1 at temperature 0: all answers would be the same")
    return [request, *(_other(request, index) for index in range(1, count))]


def _other(request: Request, index: int) -> Request:
    sampling = replace(request.sampling, seed=(request.sampling.seed + index) % 2**63)
    return replace(request, id=f"{request.id}-{index}", sampling=sampling, prompt_logprobs=False)


def _seconds_of(proto: pb.GenerateRequest, gateway: GatewayConfig) -> float:
    if not proto.HasField("deadline_seconds"):
        return gateway.request_seconds
    if not proto.deadline_seconds > 0:
        raise BadRequest("deadline_seconds", f"must be above 0, is {proto.deadline_seconds}")
    return min(proto.deadline_seconds, gateway.request_seconds)


def _max_drafts_of(proto: pb.Speculation) -> int:
    max_drafts = proto.max_tokens if proto.HasField("max_tokens") else NO_LIMIT
    return min(max_drafts, 0) if proto.off else max_drafts


def prompt_of(proto: pb.GenerateRequest | pb.TokenizeRequest, text: Text) -> tuple[int, ...]:
    """Return the tokens of the input that is set. Raises BadRequest."""
    match proto.WhichOneof("input"):
        case "prompt":
            return text.encode(proto.prompt)
        case "chat":
            return text.encode_chat([{"role": m.role, "content": m.content} for m in proto.chat.messages])
        case "token_ids":
            assert isinstance(proto, pb.GenerateRequest)
            if not proto.token_ids.ids:
                raise BadRequest("token_ids", "is empty: at least one token is needed")
            return tuple(proto.token_ids.ids)
        case _:
            raise BadRequest("prompt", "is not set, and neither is token_ids nor chat: one of the three is needed")


def reply_of(chunk: Chunk, state: RequestState) -> pb.GenerateReply:
    """Return one streamed reply; the last has usage, timings and acceptance."""
    reply = pb.GenerateReply(text=chunk.text, token_ids=chunk.tokens, logprobs=chunk.logprobs, index=state.index)
    for top in chunk.top:
        reply.top_logprobs.add(token_ids=[token for token, _ in top], logprobs=[logprob for _, logprob in top])
    if chunk is state.first_chunk:
        reply.prompt_logprobs.extend(state.prompt_logprobs)
    if chunk.finish is not None:
        assert chunk.acceptance is not None
        reply.finish_reason = FINISH_REASONS[chunk.finish]
        reply.usage.CopyFrom(_usage_of(state))
        reply.timings.CopyFrom(_timings_of(chunk, state))
        reply.acceptance.CopyFrom(pb.Acceptance(**vars(chunk.acceptance)))
    return reply


def joined(replies: Iterable[pb.GenerateReply]) -> pb.Answers:
    """Merge the streamed replies of each answer into one reply."""
    answers: dict[int, pb.GenerateReply] = {}
    for reply in replies:
        whole = answers.setdefault(reply.index, pb.GenerateReply())
        text = whole.text + reply.text
        whole.MergeFrom(reply)  # appends what is repeated, replaces the rest
        whole.text = text
    return pb.Answers(answers=[answers[index] for index in sorted(answers)])


def _request_id(client_id: str) -> str:
    """Return an id that no other request has; it begins with the client's own, if there is one."""
    if not REQUEST_ID.fullmatch(client_id):
        raise BadRequest("request_id", "may have up to 64 letters, digits, '-', '_', '.' or ':'")
    return f"{client_id}-{secrets.token_hex(8)}" if client_id else secrets.token_hex(8)


def _sampling_of(proto: pb.Sampling) -> Sampling:
    seeded = proto.HasField("seed")
    return Sampling(
        temperature=proto.temperature if proto.HasField("temperature") else 1.0,
        top_k=proto.top_k,
        top_p=proto.top_p if proto.HasField("top_p") else 1.0,
        min_p=proto.min_p,
        repetition_penalty=proto.repetition_penalty if proto.HasField("repetition_penalty") else 1.0,
        presence_penalty=proto.presence_penalty,
        frequency_penalty=proto.frequency_penalty,
        logit_bias=tuple(sorted(proto.logit_bias.items())),
        bad_words=tuple(tuple(word.ids) for word in proto.bad_words),
        seed=proto.seed if seeded else secrets.randbits(63),
        seeded=seeded,
        top_logprobs=proto.top_logprobs,
    )


def _usage_of(state: RequestState) -> pb.Usage:
    assert state.handoff is not None
    return pb.Usage(
        prompt_tokens=len(state.request.prompt),
        completion_tokens=len(state.tokens),
        cached_tokens=state.cached_tokens,
    )


def _timings_of(chunk: Chunk, state: RequestState) -> pb.Timings:
    assert chunk.timings is not None
    assert state.handoff is not None and state.first_token_at is not None
    return pb.Timings(
        **asdict(state.handoff.timings),
        **asdict(chunk.timings),
        first_token_seconds=state.first_token_at - state.arrived_at,
        total_seconds=time.monotonic() - state.arrived_at,
        prefills=state.prefills,
        preemptions=state.preemptions,
    )
