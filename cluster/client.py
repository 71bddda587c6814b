"""A small gRPC client, for the command line, the demo and the tests."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from cluster.proto import sparkpool_pb2 as pb
from cluster.proto.sparkpool_pb2_grpc import InferenceStub


class ReplyStream(Protocol):
    """An open call to Generate. Iterating raises grpc.RpcError."""

    def __iter__(self) -> Iterator[pb.GenerateReply]: ...
    def __next__(self) -> pb.GenerateReply: ...
    def cancel(self) -> bool: ...


class Client:
    """A connection to the service at `address` (host:port). `application` is its name in Ray Serve."""

    def __init__(self, address: str, application: str = "sparkpool") -> None:
        self.channel = grpc.insecure_channel(address)
        self.metadata = (("application", application),)
        self._stub = InferenceStub(self.channel)

    def generate(self, request: pb.GenerateRequest, timeout: float | None = None) -> ReplyStream:
        stream: ReplyStream = self._stub.Generate(request, timeout=timeout, metadata=self.metadata)
        return stream

    def generate_once(self, request: pb.GenerateRequest, timeout: float | None = None) -> pb.Answers:
        answers: pb.Answers = self._stub.GenerateOnce(request, timeout=timeout, metadata=self.metadata)
        return answers

    def model(self) -> pb.Model:
        model: pb.Model = self._stub.GetModel(pb.GetModelRequest(), metadata=self.metadata)
        return model

    def stats(self) -> pb.Stats:
        stats: pb.Stats = self._stub.GetStats(pb.GetStatsRequest(), metadata=self.metadata)
        return stats

    def tokenize(self, request: pb.TokenizeRequest) -> list[int]:
        tokens: pb.TokenIds = self._stub.Tokenize(request, metadata=self.metadata)
        return list(tokens.ids)

    def detokenize(self, tokens: list[int]) -> str:
        reply: pb.DetokenizeReply = self._stub.Detokenize(pb.TokenIds(ids=tokens), metadata=self.metadata)
        return str(reply.text)

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


SAMPLING = frozenset(pb.Sampling.DESCRIPTOR.fields_by_name)


def generate_request(prompt: str | list[int], **options: Any) -> pb.GenerateRequest:
    """Make a request from keywords: fields of `Sampling` (temperature, seed, ...) and of `GenerateRequest`."""
    options = {key: value for key, value in options.items() if value is not None}
    sampling = {key: options.pop(key) for key in SAMPLING & set(options)}
    common = {"sampling": pb.Sampling(**sampling), **options}
    if isinstance(prompt, str):
        return pb.GenerateRequest(prompt=prompt, **common)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), **common)
