"""The ingress deployment: each RPC in a few lines, protos to our nouns and back, every error to its gRPC status."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from cluster.gateway import Gateway, Journey
from cluster.pools import ServePools
from cluster.proto import sparkpool_pb2 as pb
from cluster.proxy import CALL_KEY
from engine.config import Config
from engine.errors import BadRequest, SparkpoolError, UnknownModel
from engine.facts import ModelFacts, PageCounts, ReplicaStats
from engine.text import Text
from engine.types import Chunk, FinishReason, Request, Sampling, StopRules

FINISH_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}
SERVICES = ("", "sparkpool.v1.Inference")  # what grpc.health.v1 may be asked about; "" is the whole server
WATCH_SECONDS = 1.0


class InferenceServicer:
    """sparkpool.v1.Inference and grpc.health.v1.Health. Serve routes an RPC to the method of its name."""

    def __init__(self, config: Config, prefill: DeploymentHandle, decode: DeploymentHandle) -> None:
        self._config = config
        self._pools = ServePools(prefill, decode)
        self._gateway = Gateway(self._pools, config.gateway)
        self._text = Text.load(config.model.path)
        self._facts: ModelFacts | None = None
        self._calls: dict[str, asyncio.Task[Any]] = {}

    async def Generate(
        self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.GenerateReply]:
        with self._cancellable(grpc_context):
            try:
                journey = Journey(await self._request(proto), arrived=time.monotonic())
                async with contextlib.aclosing(self._gateway.generate(journey)) as chunks:
                    async for chunk in chunks:
                        yield _reply(chunk, journey)
            except SparkpoolError as error:
                _refuse(grpc_context, error)
                raise

    async def GenerateOnce(self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext) -> pb.GenerateReply:
        whole, text = pb.GenerateReply(), ""
        async for reply in self.Generate(proto, grpc_context):
            whole.MergeFrom(reply)  # appends tokens and logprobs, replaces text
            text += reply.text
        whole.text = text
        return whole

    async def GetModel(self, proto: pb.GetModelRequest, grpc_context: RayServegRPCContext) -> pb.Model:
        try:
            return pb.Model(**asdict(await self._model()))
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise

    async def GetStats(self, proto: pb.GetStatsRequest, grpc_context: RayServegRPCContext) -> pb.Stats:
        try:
            replicas = [_replica(stats) for stats in await self._pools.stats()]
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise
        return pb.Stats(replicas=replicas, front=pb.Front(**asdict(self._gateway.counters)))

    async def cancel(self, call: str) -> None:
        """A proxy says that the client of this call is gone."""
        if task := self._calls.get(call):
            task.cancel()

    async def Check(
        self, proto: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthCheckResponse:
        if proto.service not in SERVICES:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"unknown service {proto.service}")
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=await self._health())

    async def List(
        self, proto: health_pb2.HealthListRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthListResponse:
        answer = health_pb2.HealthCheckResponse(status=await self._health())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICES, answer))

    async def Watch(
        self, proto: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        known = proto.service in SERVICES
        last = None
        with self._cancellable(grpc_context):
            while True:
                status = await self._health() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await asyncio.sleep(WATCH_SECONDS)

    @contextlib.contextmanager
    def _cancellable(self, context: RayServegRPCContext) -> Iterator[None]:
        """While the block runs, `cancel` can end it by the id that the proxy gave the call."""
        call = dict(context.invocation_metadata()).get(CALL_KEY)
        task = asyncio.current_task()
        if call is None or task is None:
            yield
            return
        self._calls[call] = task
        try:
            yield
        finally:
            del self._calls[call]

    async def _health(self) -> Any:
        """SERVING if a replica of each pool answers."""
        if await self._pools.healthy():
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def _model(self) -> ModelFacts:
        if self._facts is None:
            self._facts = await self._pools.facts()
        return self._facts

    async def _request(self, proto: pb.GenerateRequest) -> Request:
        """The request as the pools know it. Raises BadRequest or UnknownModel."""
        model = await self._model()
        if proto.model not in ("", model.name):
            raise UnknownModel(f"model: {proto.model!r} is not served here; {model.name!r} is")
        prompt = self._prompt(proto)
        room = max(1, model.max_tokens - len(prompt))
        max_tokens = (
            proto.max_tokens if proto.HasField("max_tokens") else min(self._config.gateway.default_max_tokens, room)
        )
        request = Request(
            id=secrets.token_hex(8),
            prompt=prompt,
            sampling=_sampling(proto.sampling),
            stop=StopRules(
                max_tokens=max_tokens,
                min_tokens=proto.min_tokens,
                stop=tuple(proto.stop),
                stop_token_ids=tuple(proto.stop_token_ids),
                ignore_eos=proto.ignore_eos,
            ),
        )
        request.check(model)
        return request

    def _prompt(self, proto: pb.GenerateRequest) -> tuple[int, ...]:
        match proto.WhichOneof("input"):
            case "prompt":
                return self._text.encode(proto.prompt)
            case "token_ids":
                if not proto.token_ids.ids:
                    raise BadRequest("token_ids", "is empty: at least one token is needed")
                return tuple(proto.token_ids.ids)
            case _:
                raise BadRequest("prompt", "is not set, nor is token_ids: one of them is needed")


def _sampling(proto: pb.Sampling) -> Sampling:
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


def _reply(chunk: Chunk, journey: Journey) -> pb.GenerateReply:
    reply = pb.GenerateReply(text=chunk.text, token_ids=chunk.tokens, logprobs=chunk.logprobs)
    if chunk.finish is not None:
        reply.finish_reason = FINISH_REASONS[chunk.finish]
        tokens = len(journey.tokens)
        reply.usage.CopyFrom(pb.Usage(prompt_tokens=len(journey.request.prompt), completion_tokens=tokens))
        reply.timings.CopyFrom(_timings(chunk, journey))
    return reply


def _timings(chunk: Chunk, journey: Journey) -> pb.Timings:
    assert chunk.timings is not None and journey.handoff is not None and journey.first_token_at is not None
    return pb.Timings(
        **asdict(journey.handoff.timings),
        **asdict(chunk.timings),
        first_token_seconds=journey.first_token_at - journey.arrived,
        total_seconds=time.monotonic() - journey.arrived,
        prefills=journey.prefills,
    )


def _replica(stats: ReplicaStats) -> pb.Replica:
    fields: dict[str, Any] = {**vars(stats)}
    pages: dict[str, PageCounts] = fields.pop("pages")
    return pb.Replica(**fields, pages={name: pb.Pages(**asdict(counts)) for name, counts in pages.items()})


def _refuse(context: RayServegRPCContext, error: SparkpoolError) -> None:
    """Give the call the error's own status; then raise it. (Without a status, Serve would send a traceback; without
    raising, the status of a stream that has sent nothing would be lost.)"""
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(str(error))
