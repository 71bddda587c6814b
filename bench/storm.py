"""Sends load while replicas are killed, replaced or scaled, and compares every answer with an undisturbed one.

Both answers are greedy or seeded, so their tokens are equal, except after the first position where the two best logits
of a greedy answer differ by less than TIE: which of the two wins may depend on what else is in the batch.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import ray

from cluster.client import generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.proto.sparkpool_pb2_grpc import InferenceStub

TIE = 1e-4
VOCABULARY = range(300, 2000)  # ordinary tokens of the shipped model
SECONDS = 300.0  # time limit of one answer


@dataclass(frozen=True)
class Question:
    """A prompt and the options of its answer, which is greedy without a seed."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None

    def request(self) -> pb.GenerateRequest:
        how: dict[str, Any] = {"temperature": 0.0} if self.seed is None else {"temperature": 1.0, "seed": self.seed}
        how |= {"max_tokens": self.max_tokens, "ignore_eos": True, "top_logprobs": 2}
        return generate_request(list(self.prompt), **how)


@dataclass
class Answer:
    """An answer as the client saw it. `gaps`: at each token, the best logit minus the second best."""

    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    prefills: int = 0
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Counts of answers that failed, had another length, had other tokens, differed after a tie, or were resumed."""

    failed: list[str]
    incomplete: int
    different: int
    ties: int
    resumed: int

    @property
    def clean(self) -> bool:
        return not (self.failed or self.incomplete or self.different)


def questions(
    count: int,
    draw: random.Random,
    output_tokens: tuple[int, int] = (32, 128),
    prompt_tokens: tuple[int, int] = (20, 92),
) -> list[Question]:
    """Make questions. Half of the prompts begin with 128 tokens shared with others; every second one has a seed."""
    beginnings = [tuple(draw.choices(VOCABULARY, k=128)) for _ in range(8)]
    made = []
    for number in range(count):
        beginning = draw.choice(beginnings) if draw.random() < 0.5 else ()
        prompt = (*beginning, *draw.choices(VOCABULARY, k=draw.randint(*prompt_tokens)))
        made.append(Question(prompt, draw.randint(*output_tokens), number if number % 2 else None))
    return made


async def ask_all(
    address: str,
    application: str,
    asked: Sequence[Question],
    concurrency: int,
    on_end: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Return the answers to all questions, of which `concurrency` run at once."""
    slots = asyncio.Semaphore(concurrency)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceStub(channel)

        async def ask(question: Question) -> Answer:
            async with slots:
                answer, began = Answer(), time.perf_counter()
                call = stub.Generate(question.request(), timeout=SECONDS, metadata=(("application", application),))
                try:
                    async for reply in call:
                        answer.tokens += reply.token_ids
                        answer.gaps += [top.logprobs[0] - top.logprobs[1] for top in reply.top_logprobs]
                        answer.prefills = max(answer.prefills, reply.timings.prefills)
                except grpc.aio.AioRpcError as error:
                    answer.error = f"{error.code().name}: {error.details()}"
                answer.seconds = time.perf_counter() - began
                on_end(answer)
                return answer

        return await asyncio.gather(*(ask(question) for question in asked))


def compare(asked: Sequence[Question], before: Sequence[Answer], after: Sequence[Answer]) -> Verdict:
    """Compare the answers `after` with the undisturbed answers `before`."""
    failed, incomplete, different, ties = [], 0, 0, 0
    for question, reference, answer in zip(asked, before, after, strict=True):
        assert len(reference.tokens) == question.max_tokens, f"the reference itself failed: {reference.error}"
        if answer.error:
            failed.append(answer.error)
        elif len(answer.tokens) != question.max_tokens:
            incomplete += 1
        elif answer.tokens != reference.tokens:
            position = next(i for i, (a, b) in enumerate(zip(answer.tokens, reference.tokens, strict=True)) if a != b)
            tie = question.seed is None and reference.gaps[position] < TIE
            ties, different = ties + tie, different + (not tie)
    return Verdict(failed, incomplete, different, ties, sum(answer.prefills > 1 for answer in after))


def leaks(stats: pb.Stats) -> list[str]:
    """Describe the requests, leases and pages that an idle service still holds."""
    found = []
    for replica in stats.replicas:
        if replica.waiting or replica.running or replica.leases.held:
            underway = f"{replica.waiting} wait, {replica.running} run, {replica.leases.held} leases"
            found.append(f"{replica.identity.replica}: {underway}")
        for group, pages in replica.pages.items():
            if pages.free + pages.cached != pages.total:
                found.append(f"{replica.identity.replica}: pages of {group}: {pages}".replace("\n", " "))
    return found


class Replicas:
    """Kills replicas of an application's engines, which are Ray actors."""

    def __init__(self, application: str, draw: random.Random) -> None:
        self._prefix = f"SERVE_REPLICA::{application}#"
        self._draw = draw
        self.killed: list[str] = []

    def kill_one(self) -> str:
        """Kill a random replica of a random pool, and return its name."""
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        engines = sorted(name for name in names if name.startswith(self._prefix) and "#Gateway#" not in name)
        name = self._draw.choice(engines)
        ray.kill(ray.get_actor(name, namespace="serve"))
        self.killed.append(name)
        return str(name).removeprefix(self._prefix)
