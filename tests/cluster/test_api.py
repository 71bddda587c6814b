"""What a client sees: replies, statuses that name the field, health, reflection, statistics."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from transformers import AutoTokenizer

from cluster.client import generate_request
from cluster.proto import sparkpool_pb2 as pb
from tests.cluster.conftest import Service, text, tokens

METHODS = ("Generate", "GenerateOnce", "GetModel", "GetStats", "GetRecords", "Tokenize", "Detokenize")
PROMPT = "def read_json(path):\n    "


def test_replies_stream_and_the_last_one_accounts_for_the_request(shipped: Service) -> None:
    replies = shipped.ask(PROMPT, temperature=0.0, max_tokens=24)

    last = replies[-1]
    assert len(replies) > 5
    assert all(reply.finish_reason == pb.FINISH_REASON_UNSPECIFIED for reply in replies[:-1])
    assert last.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)
    assert last.usage.completion_tokens == len(tokens(replies)) == sum(len(reply.logprobs) for reply in replies)
    assert last.usage.prompt_tokens == len(shipped_tokens(shipped, PROMPT))
    assert last.acceptance == pb.Acceptance(steps=last.usage.completion_tokens - 1), "no drafter, no drafts"
    timings = last.timings
    assert timings.prefills == 1
    assert timings.moved_pages == 1
    assert timings.moved_bytes == shipped.client.model().page_bytes["full"]
    assert 0 < timings.prefill_seconds <= timings.first_token_seconds <= timings.total_seconds
    assert 0 < timings.transfer_seconds < timings.total_seconds


def test_generate_once_returns_the_same_answer_as_the_stream(shipped: Service) -> None:
    streamed = shipped.ask(PROMPT, temperature=0.0, max_tokens=24)

    (whole,) = shipped.client.generate_once(generate_request(PROMPT, temperature=0.0, max_tokens=24)).answers

    assert list(whole.token_ids) == tokens(streamed)
    assert whole.text == text(streamed)
    assert whole.finish_reason == streamed[-1].finish_reason


def test_a_seed_gives_the_same_tokens_whatever_else_is_served(shipped: Service) -> None:
    options = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 24}
    alone = tokens(shipped.ask(PROMPT, seed=7, **options))

    with ThreadPoolExecutor(6) as pool:
        crowd = [pool.submit(shipped.ask, PROMPT, seed=seed, **options) for seed in (7, 1, 2, 7, 3, 4)]
        answers = [tokens(call.result()) for call in crowd]

    assert answers[0] == answers[3] == alone
    assert len({tuple(answer) for answer in answers}) > 3


def test_a_stop_token_ends_the_answer_and_is_not_part_of_its_text(shipped: Service) -> None:
    free = tokens(shipped.ask(PROMPT, temperature=0.0, max_tokens=24))

    stopped = shipped.ask(PROMPT, temperature=0.0, max_tokens=24, stop_token_ids=[free[5]])

    first = free.index(free[5])
    assert tokens(stopped) == free[: first + 1]
    assert stopped[-1].finish_reason == pb.FINISH_REASON_STOP


def test_every_option_reaches_the_engine(shipped: Service) -> None:
    free = shipped.ask(PROMPT, temperature=0.0, max_tokens=24)
    first, said = tokens(free)[0], text(free)
    third = tokens(free)[2]

    def ask(sampling: pb.Sampling, **options: object) -> pb.GenerateReply:
        sampling.temperature = 0.0
        request = pb.GenerateRequest(prompt=PROMPT, sampling=sampling, **{"max_tokens": 24, **options})
        return shipped.client.generate_once(request).answers[0]

    assert ask(pb.Sampling(logit_bias={77: 100.0})).token_ids[0] == 77
    assert first not in ask(pb.Sampling(bad_words=[pb.TokenIds(ids=[first])])).token_ids
    assert len({*ask(pb.Sampling(repetition_penalty=100.0)).token_ids}) == 24
    assert len({*ask(pb.Sampling(presence_penalty=2.0, frequency_penalty=2.0)).token_ids}) > len({*tokens(free)})
    stop = said[4:9]
    assert ask(pb.Sampling(), stop=[stop]).text == said[: said.index(stop)]
    assert len(ask(pb.Sampling(), stop_token_ids=[third]).token_ids) <= 3
    assert len(ask(pb.Sampling(), stop_token_ids=[third], min_tokens=10).token_ids) >= 10


@pytest.mark.parametrize(
    ("request_fields", "status", "field"),
    [
        ({"prompt": ""}, "INVALID_ARGUMENT", "prompt"),
        ({}, "INVALID_ARGUMENT", "prompt"),
        ({"token_ids": pb.TokenIds(ids=[])}, "INVALID_ARGUMENT", "token_ids"),
        ({"token_ids": pb.TokenIds(ids=[1, 10**6])}, "INVALID_ARGUMENT", "token_ids"),
        ({"token_ids": pb.TokenIds(ids=[-1])}, "INVALID_ARGUMENT", "token_ids"),
        ({"token_ids": pb.TokenIds(ids=[5] * 9000)}, "INVALID_ARGUMENT", "prompt"),
        ({"token_ids": pb.TokenIds(ids=[5] * 8000), "max_tokens": 300}, "INVALID_ARGUMENT", "max_tokens"),
        ({"prompt": "x", "max_tokens": 0}, "INVALID_ARGUMENT", "max_tokens"),
        ({"prompt": "x", "max_tokens": -3}, "INVALID_ARGUMENT", "max_tokens"),
        ({"prompt": "x", "model": "gpt-5"}, "NOT_FOUND", "model"),
        ({"prompt": "x", "stop_token_ids": [99999]}, "INVALID_ARGUMENT", "stop_token_ids"),
        ({"prompt": "x", "sampling": pb.Sampling(temperature=-1)}, "INVALID_ARGUMENT", "temperature"),
        ({"prompt": "x", "sampling": pb.Sampling(temperature=float("nan"))}, "INVALID_ARGUMENT", "temperature"),
        ({"prompt": "x", "sampling": pb.Sampling(top_k=-1)}, "INVALID_ARGUMENT", "top_k"),
        ({"prompt": "x", "sampling": pb.Sampling(top_p=0)}, "INVALID_ARGUMENT", "top_p"),
        ({"prompt": "x", "sampling": pb.Sampling(seed=-4)}, "INVALID_ARGUMENT", "seed"),
        ({"prompt": "x", "sampling": pb.Sampling(min_p=1.5)}, "INVALID_ARGUMENT", "min_p"),
        ({"prompt": "x", "sampling": pb.Sampling(repetition_penalty=0)}, "INVALID_ARGUMENT", "repetition_penalty"),
        ({"prompt": "x", "sampling": pb.Sampling(presence_penalty=3)}, "INVALID_ARGUMENT", "presence_penalty"),
        ({"prompt": "x", "sampling": pb.Sampling(frequency_penalty=-3)}, "INVALID_ARGUMENT", "frequency_penalty"),
        ({"prompt": "x", "sampling": pb.Sampling(logit_bias={3: 101.0})}, "INVALID_ARGUMENT", "logit_bias"),
        ({"prompt": "x", "sampling": pb.Sampling(logit_bias={-3: 1.0})}, "INVALID_ARGUMENT", "logit_bias"),
        ({"prompt": "x", "sampling": pb.Sampling(bad_words=[pb.TokenIds()])}, "INVALID_ARGUMENT", "bad_words"),
        ({"prompt": "x", "min_tokens": -1}, "INVALID_ARGUMENT", "min_tokens"),
        ({"prompt": "x", "min_tokens": 9, "max_tokens": 8}, "INVALID_ARGUMENT", "min_tokens"),
        ({"chat": pb.Chat()}, "INVALID_ARGUMENT", "chat"),
        ({"prompt": "x", "request_id": "a b"}, "INVALID_ARGUMENT", "request_id"),
        ({"prompt": "x", "request_id": "a" * 65}, "INVALID_ARGUMENT", "request_id"),
        ({"prompt": "x", "stop": [""]}, "INVALID_ARGUMENT", "stop"),
        ({"prompt": "x", "sampling": pb.Sampling(temperature=0, seed=4)}, "INVALID_ARGUMENT", "seed"),
        ({"prompt": "x", "sampling": pb.Sampling(temperature=0, top_p=0.5)}, "INVALID_ARGUMENT", "temperature"),
        ({"prompt": "x", "sampling": pb.Sampling(top_logprobs=21)}, "INVALID_ARGUMENT", "top_logprobs"),
        ({"prompt": "x", "n": 0}, "INVALID_ARGUMENT", "n"),
        ({"prompt": "x", "n": 65}, "INVALID_ARGUMENT", "n"),
        ({"prompt": "x", "n": 2, "sampling": pb.Sampling(temperature=0)}, "INVALID_ARGUMENT", "n"),
        ({"prompt": "x", "deadline_seconds": 0}, "INVALID_ARGUMENT", "deadline_seconds"),
        ({"prompt": "x", "deadline_seconds": float("nan")}, "INVALID_ARGUMENT", "deadline_seconds"),
        ({"prompt": "x", "decode_pool": "gpu"}, "INVALID_ARGUMENT", "decode_pool"),
        ({"prompt": "x", "speculation": pb.Speculation(max_tokens=-1)}, "INVALID_ARGUMENT", "speculation.max_tokens"),
    ],
)
def test_bad_input_gets_a_status_that_names_the_field(
    shipped: Service, request_fields: dict[str, object], status: str, field: str
) -> None:
    request = pb.GenerateRequest(**request_fields)

    for call in (lambda: list(shipped.client.generate(request)), lambda: shipped.client.generate_once(request)):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code().name == status
        assert refused.value.details().startswith(f"{field}: ")

    assert tokens(shipped.ask("import", temperature=0.0, max_tokens=2)), "the service goes on"


def test_a_chat_is_put_into_the_form_of_the_models_template(shipped: Service) -> None:
    chat = pb.Chat(messages=[pb.Message(role="user", content="def add(a, b):\nAdd two numbers.")])
    ids = shipped.client.tokenize(pb.TokenizeRequest(chat=chat))
    options = {"sampling": pb.Sampling(temperature=0), "max_tokens": 8}

    (by_chat,) = shipped.client.generate_once(pb.GenerateRequest(chat=chat, request_id="my:chat_1", **options)).answers
    (by_ids,) = shipped.client.generate_once(pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), **options)).answers

    template = AutoTokenizer.from_pretrained(shipped.config.model.path).apply_chat_template
    messages = [{"role": "user", "content": "def add(a, b):\nAdd two numbers."}]
    assert ids == template(messages, add_generation_prompt=True, return_dict=False)
    assert by_chat.token_ids == by_ids.token_ids


def test_text_is_tokenized_and_tokens_are_detokenized(shipped: Service) -> None:
    text = "naïve = '日本語 🙂'  # any text\n"

    ids = shipped.client.tokenize(pb.TokenizeRequest(prompt=text))

    assert shipped.client.detokenize(ids) == text
    with pytest.raises(grpc.RpcError) as refused:
        shipped.client.detokenize([10**6])
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith("ids: ")


def test_health_is_serving_and_unknown_services_are_not_found(shipped: Service) -> None:
    stub = health_pb2_grpc.HealthStub(shipped.client.channel)
    metadata = shipped.client.metadata

    for service in ("", "sparkpool.v1.Inference"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), metadata=metadata)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    listed = stub.List(health_pb2.HealthListRequest(), metadata=metadata).statuses
    assert listed["sparkpool.v1.Inference"].status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="nonsense"), metadata=metadata)
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_service(shipped: Service) -> None:
    database = ProtoReflectionDescriptorDatabase(shipped.client.channel)

    assert {"sparkpool.v1.Inference", "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("sparkpool.v1.Inference")
    assert {method.name for method in service.methods} == {*METHODS}


def test_get_model_returns_the_model_and_its_limits(shipped: Service) -> None:
    model = shipped.client.model()

    assert (model.name, model.architecture) == ("tiny-mla", "DeepseekV3ForCausalLM")
    assert model.max_tokens == 8192
    assert model.page_tokens == 64
    assert len(model.eos_token_ids) == 1
    assert set(model.fingerprint) == {"architecture", "config", "weights", "dtype", "layout"}


def test_statistics_cover_every_replica_and_agents_have_names_of_their_own(shipped: Service) -> None:
    stats = shipped.client.stats()

    assert sorted(replica.identity.role for replica in stats.replicas) == ["decode", "decode", "prefill", "prefill"]
    assert len({replica.identity.agent for replica in stats.replicas}) == 4
    assert stats.gateway.requests > 0


def shipped_tokens(service: Service, prompt: str) -> tuple[int, ...]:
    from engine.text import Text

    return Text.load(service.config.model.path).encode(prompt)
