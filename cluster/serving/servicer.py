"""The ingress deployment of Serve: implements the RPCs, and gives each error its gRPC status."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict

import grpc
from grpc_health.v1 import health_pb2
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from cluster.proto import sparkpool_pb2 as pb
from cluster.records import all_parts, message_of
from cluster.serving.answers import answers
from cluster.serving.board import LiveBoard
from cluster.serving.gateway import Gateway
from cluster.serving.pools import ServePools
from cluster.serving.protos import answers_of, joined, prompt_of, reply_of, request_of
from cluster.serving.proxy import CALL_KEY
from engine.config import Config
from engine.errors import Overloaded, SparkpoolError
from engine.facts import ModelFacts
from engine.text import Text
from engine.types import check_tokens
from policy.request_state import RequestState

SERVICES = ("", "sparkpool.v1.Inference")  # the names that grpc.health.v1 knows; "" is the whole server
WATCH_SECONDS = 1.0
PUSHBACK = "grpc-retry-pushback-ms"  # metadata that gRPC clients with a retry policy obey (gRFC A6)


class InferenceServicer:
    """Implements sparkpool.v1.Inference and grpc.health.v1.Health. Serve routes an RPC to the method of its name."""

    def __init__(self, config: Config, prefill: DeploymentHandle, decode: dict[str, DeploymentHandle]) -> None:
        self._config = config
        self._pools = ServePools(prefill, decode)
        self._board = LiveBoard(config, self._pools.stats)
        self._gateway = Gateway(self._pools, self._board, config.gateway)
        self._text = Text.load(config.model.path)
        self._facts: ModelFacts | None = None
        self._calls: dict[str, asyncio.Task[object]] = {}

    async def Generate(
        self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.GenerateReply]:
        with self._cancellable(grpc_context), _status_of_errors(grpc_context):
            arrived = time.monotonic()
            request = request_of(proto, self._text, await self._model(), self._config.gateway)
            self._board.pool(request, proto.decode_pool, proto.service_tier)  # refuses an unknown pool or tier
            named = proto.decode_pool or self._config.gateway.tiers.get(proto.service_tier, "")
            requests = answers_of(proto, request)
            states = [RequestState(r, arrived, named, index) for index, r in enumerate(requests)]
            async with contextlib.aclosing(answers(self._gateway, states)) as chunks:
                async for state, chunk in chunks:
                    yield reply_of(chunk, state)

    async def GenerateOnce(self, proto: pb.GenerateRequest, grpc_context: RayServegRPCContext) -> pb.Answers:
        return joined([reply async for reply in self.Generate(proto, grpc_context)])

    async def GetModel(self, proto: pb.GetModelRequest, grpc_context: RayServegRPCContext) -> pb.Model:
        with _status_of_errors(grpc_context):
            return pb.Model(**asdict(await self._model()))

    async def GetStats(self, proto: pb.GetStatsRequest, grpc_context: RayServegRPCContext) -> pb.Stats:
        with _status_of_errors(grpc_context):
            replicas = [asdict(stats) for stats in await self._pools.stats()]
            return pb.Stats(replicas=replicas, gateway=asdict(self._gateway.counters))

    async def GetRecords(
        self, proto: pb.GetRecordsRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.Records]:
        with _status_of_errors(grpc_context):
            async for part in all_parts(self._pools.records, proto.skip, proto.sizes_only):
                yield message_of(part)

    async def Tokenize(self, proto: pb.TokenizeRequest, grpc_context: RayServegRPCContext) -> pb.TokenIds:
        with _status_of_errors(grpc_context):
            return pb.TokenIds(ids=prompt_of(proto, self._text))

    async def Detokenize(self, proto: pb.TokenIds, grpc_context: RayServegRPCContext) -> pb.DetokenizeReply:
        with _status_of_errors(grpc_context):
            check_tokens("ids", proto.ids, (await self._model()).vocab_size)
            return pb.DetokenizeReply(text=self._text.decode(tuple(proto.ids)))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the gateway's recent latencies for cluster/serving/autoscale.py; -1 stands for None."""
        load = self._gateway.load(self._config.targets.ttft_percentile)
        return {name: -1.0 if value is None else value for name, value in vars(load).items()}

    async def cancel(self, call: str) -> None:
        """Cancel a call by its id: a proxy calls this when the client has disconnected."""
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
        """While the block runs, `cancel` can end it by the id that cluster/serving/proxy.py gave the call."""
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

    async def _health(self) -> health_pb2.HealthCheckResponse.ServingStatus:
        """Return SERVING if a replica of each pool answers."""
        if await self._pools.healthy():
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def _model(self) -> ModelFacts:
        if self._facts is None:
            self._facts = await self._pools.facts()
        return self._facts


@contextlib.contextmanager
def _status_of_errors(context: RayServegRPCContext) -> Iterator[None]:
    """Give the call the gRPC status of the SparkpoolError that ends the block, and raise the error again.

    Without a status Serve would send a traceback; unless it is raised, a stream that has sent nothing loses its status.
    """
    try:
        yield
    except SparkpoolError as error:
        context.set_code(grpc.StatusCode[error.grpc_status])
        context.set_details(str(error))
        if isinstance(error, Overloaded):
            context.set_trailing_metadata([(PUSHBACK, str(math.ceil(error.retry_seconds * 1e3)))])
        raise
