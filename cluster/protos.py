"""From protos to our nouns and back. Everything a client can write wrongly is found here or in `Request.check`."""

import re
import secrets
import time
from dataclasses import asdict
from typing import Any

from cluster.gateway import Journey
from cluster.proto import sparkpool_pb2 as pb
from engine.errors import BadRequest, UnknownModel
from engine.facts import ModelFacts, PageCounts, ReplicaStats
from engine.text import Text
from engine.types import Chunk, FinishReason, Request, Sampling, StopRules

FINISH_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
REQUEST_ID = re.compile(r"[\w.:-]{0,64}", re.ASCII)


def request_of(proto: pb.GenerateRequest, text: Text, model: ModelFacts, default_max_tokens: int) -> Request:
    """The request as the pools know it. Raises BadRequest or UnknownModel."""
    if proto.model not in ("", model.name):
        raise UnknownModel(f"model: {proto.model!r} is not served here; {model.name!r} is")
    prompt = prompt_of(proto, text)
    room = max(1, model.max_tokens - len(prompt))
    request = Request(
        id=_request_id(proto.request_id),
        prompt=prompt,
        sampling=_sampling_of(proto.sampling),
        stop=StopRules(
            max_tokens=proto.max_tokens if proto.HasField("max_tokens") else min(default_max_tokens, room),
            min_tokens=proto.min_tokens,
            stop=tuple(proto.stop),
            stop_token_ids=tuple(proto.stop_token_ids),
            ignore_eos=proto.ignore_eos,
        ),
    )
    request.check(model)
    return request


def prompt_of(proto: pb.GenerateRequest | pb.TokenizeRequest, text: Text) -> tuple[int, ...]:
    """The tokens of whichever input is set. Raises BadRequest."""
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
            raise BadRequest("prompt", "is not set, nor is another form of input: one is needed")


def reply_of(chunk: Chunk, journey: Journey) -> pb.GenerateReply:
    """One streamed reply; the last has usage and timings."""
    reply = pb.GenerateReply(text=chunk.text, token_ids=chunk.tokens, logprobs=chunk.logprobs)
    if chunk.finish is not None:
        reply.finish_reason = FINISH_REASONS[chunk.finish]
        tokens = len(journey.tokens)
        reply.usage.CopyFrom(pb.Usage(prompt_tokens=len(journey.request.prompt), completion_tokens=tokens))
        reply.timings.CopyFrom(_timings_of(chunk, journey))
    return reply


def replica_of(stats: ReplicaStats) -> pb.Replica:
    fields: dict[str, Any] = {**vars(stats)}
    pages: dict[str, PageCounts] = fields.pop("pages")
    return pb.Replica(**fields, pages={name: pb.Pages(**asdict(counts)) for name, counts in pages.items()})


def _request_id(wished: str) -> str:
    """A name that no other request has; it begins with the client's own, if there is one."""
    if not REQUEST_ID.fullmatch(wished):
        raise BadRequest("request_id", "may have up to 64 letters, digits, '-', '_', '.' or ':'")
    return f"{wished}-{secrets.token_hex(8)}" if wished else secrets.token_hex(8)


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
    )


def _timings_of(chunk: Chunk, journey: Journey) -> pb.Timings:
    assert chunk.timings is not None
    assert journey.handoff is not None and journey.first_token_at is not None
    return pb.Timings(
        **asdict(journey.handoff.timings),
        **asdict(chunk.timings),
        first_token_seconds=journey.first_token_at - journey.arrived,
        total_seconds=time.monotonic() - journey.arrived,
        prefills=journey.prefills,
    )
