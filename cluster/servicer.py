"""The ingress deployment: each RPC in a few lines, every error to its gRPC status."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from cluster.answers import answers
from cluster.board import LiveBoard
from cluster.gateway import Gateway
from cluster.pools import ServePools
from cluster.proto import sparkpool_pb2 as pb
from cluster.protos import answers_of, joined, prompt_of, replica_of, reply_of, request_of
from cluster.proxy import CALL_KEY
from cluster.records import all_parts, message_of
from engine.config import Config
from engine.errors import Overloaded, SparkpoolError
from engine.facts import ModelFacts
from engine.text import Text
from engine.types import check_tokens
from policy.request_state import RequestState

SERVICES = ("", "sparkpool.v1.Inference")  # what grpc.health.v1 may be asked about; "" is the whole server
WATCH_SECONDS = 1.0
PUSHBACK = "grpc-retry-pushback-ms"  # what gRPC clients with a retry policy obey (gRFC A6)


class InferenceServicer:
    """sparkpool.v1.Inference and grpc.health.v1.Health. Serve routes an RPC to the method of its name."""

    def __init__(self, config: Config, prefill: DeploymentHandle, decode: dict[str, DeploymentHandle]) -> None:
        self._config = config
        self._pools = ServePools(prefill, decode)
        self._board = LiveBoard(config, self._pools.stats)
        self._gateway = Gateway(self._pools, self._board, config.gateway)
        self._text = Text.load(config.model.path)
        self._facts: ModelFacts | None = None
        self._calls: dict[str, asyncio.Task[Any]] = {}

    async def Generate(
        self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.GenerateReply]:
        with self._cancellable(grpc_context):
            try:
                arrived = time.monotonic()
                request = request_of(proto, self._text, await self._model(), self._config.gateway)
                self._board.pool(request, proto.decode_pool, proto.service_tier)  # refuses one that is not there
                named = proto.decode_pool or self._config.gateway.tiers.get(proto.service_tier, "")
                requests = answers_of(proto, request)
                states = [RequestState(r, arrived, named, index) for index, r in enumerate(requests)]
                async with contextlib.aclosing(answers(self._gateway, states)) as spoken:
                    async for state, chunk in spoken:
                        yield reply_of(chunk, state)
            except SparkpoolError as error:
                _refuse(grpc_context, error)
                raise

    async def GenerateOnce(self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext) -> pb.Answers:
        return joined([reply async for reply in self.Generate(proto, grpc_context)])

    async def GetModel(self, proto: pb.GetModelRequest, grpc_context: RayServegRPCContext) -> pb.Model:
        try:
            return pb.Model(**asdict(await self._model()))
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise

    async def GetStats(self, proto: pb.GetStatsRequest, grpc_context: RayServegRPCContext) -> pb.Stats:
        try:
            replicas = [replica_of(stats) for stats in await self._pools.stats()]
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise
        return pb.Stats(replicas=replicas, front=pb.Front(**asdict(self._gateway.counters)))

    async def GetRecords(
        self, proto: pb.GetRecordsRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.Records]:
        try:
            async for part in all_parts(self._pools.records, proto.skip, proto.sizes_only):
                yield message_of(part)
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise

    async def Tokenize(self, proto: pb.TokenizeRequest, grpc_context: RayServegRPCContext) -> pb.TokenIds:
        try:
            return pb.TokenIds(ids=prompt_of(proto, self._text))
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise

    async def Detokenize(self, proto: pb.TokenIds, grpc_context: RayServegRPCContext) -> pb.DetokenizeReply:
        try:
            check_tokens("ids", proto.ids, (await self._model()).vocab_size)
            return pb.DetokenizeReply(text=self._text.decode(tuple(proto.ids)))
        except SparkpoolError as error:
            _refuse(grpc_context, error)
            raise

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What scaling goes by, of the front (cluster/autoscale.py); -1 for what is not known."""
        load = self._gateway.load(self._config.targets.ttft_percentile)
        return {name: -1.0 if value is None else value for name, value in vars(load).items()}

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


def _refuse(context: RayServegRPCContext, error: SparkpoolError) -> None:
    """Give the call the error's own status; then raise it. (Without a status, Serve would send a traceback; without
    raising, the status of a stream that has sent nothing would be lost.)"""
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(str(error))
    if isinstance(error, Overloaded):
        context.set_trailing_metadata([(PUSHBACK, str(math.ceil(error.retry_seconds * 1e3)))])
