"""Workloads generated from a seed: the prompts of sessions of one or more turns, and their times.

Each number is a published one or our own assumption, and says which. The same seed gives the same
workload everywhere, and a shorter one is the beginning of a longer one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, islice, takewhile
from random import Random
from typing import Protocol

from compare.simulator.workload import Arrival, PromptSegment, Workload
from engine.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """One request of a session."""

    input_tokens: int
    output_tokens: int
    shared: tuple[PromptSegment, ...] = ()
    pause: float = 0.0
    """The smallest number of seconds from this turn to the next, which include the time of the answer."""


class Mix(Protocol):
    """A kind of workload."""

    @property
    def domain(self) -> str: ...

    @property
    def mean_turns(self) -> float:
        """The mean number of turns of a session: each turn is the last one with a chance of 1 / `mean_turns`."""

    def session(self, name: str, rng: Random) -> Iterator[Turn]:
        """Yield the turns of a session, at least one. `name` names the prefixes that only its turns share."""


@dataclass(frozen=True)
class Lognormal:
    """A lognormal distribution, cut at both ends. Half of the numbers are below `median`, two thirds within a factor of
    exp(`spread`) of it."""

    median: float
    spread: float
    min_value: float = 1.0
    max_value: float = math.inf

    def number(self, rng: Random) -> float:
        return min(max(rng.lognormvariate(math.log(self.median), self.spread), self.min_value), self.max_value)

    def count(self, rng: Random) -> int:
        return round(self.number(rng))


@dataclass(frozen=True)
class FixedSize:
    """Requests of one size, which share nothing."""

    input_tokens: int
    output_tokens: int
    domain: str = ""

    @property
    def mean_turns(self) -> float:
        return 1.0

    def session(self, name: str, rng: Random) -> Iterator[Turn]:
        yield Turn(self.input_tokens, self.output_tokens)


@dataclass(frozen=True)
class Chat:
    """Conversations. Each prompt consists of all earlier turns and a new question.

    Lengths are about those of Azure's conversation trace of 2023 (AzureLLMInferenceTrace_conv.csv, our arithmetic): its
    prompts have a median of 1,020 tokens and a mean of 1,155, its answers of 129 and 211. Here: 1,020, 1,290, 129, 200.
    """

    opening: Lognormal = Lognormal(median=600, spread=0.8, max_value=14_000)
    """Tokens of the first prompt. Ours: gives all prompts together about the trace's median and its nine tenths below
    2,700; its longest has 14,050."""
    question: Lognormal = Lognormal(median=70, spread=1.0)
    """Tokens of each later question. Ours."""
    answer: Lognormal = Lognormal(median=129, spread=0.99, max_value=1000)
    """Tokens. The median and the longest are the trace's, the spread the one of a lognormal with its mean."""
    mean_turns: float = 2.5
    """WildChat (arXiv 2405.01470): 2.5 million turns in one million conversations."""
    pause: Lognormal = Lognormal(median=45.0, spread=0.8, max_value=1800.0)
    """Seconds to read and to type. Ours."""
    domain: str = "chat"

    def session(self, name: str, rng: Random) -> Iterator[Turn]:
        prompt = self.opening.count(rng)
        while True:
            answer = self.answer.count(rng)
            yield Turn(prompt, answer, (PromptSegment(f"chat {name}", prompt),), self.pause.number(rng))
            prompt += answer + self.question.count(rng)


@dataclass(frozen=True)
class CodingAgent:
    """Agents at work on a few repositories. Each prompt consists of the last one, its answer and a tool's result.

    Together: prompts with a median near 140,000 tokens, of which 99% began the prompt before, as SemiAnalysis says of
    AgentX (newsletter.semianalysis.com/p/vera-rubin-nvl72-agentic-inference). TraceLab (arXiv 2606.30560) has a mean of
    154,000 with 96% known, over 4,265 sessions.
    """

    system_tokens: int = 17_000
    """Instructions and tools, the same in all sessions. SemiAnalysis' cc-traces-weka-042026: about 12,500 of tools and
    2,800 to 4,200 of instructions."""
    repositories: int = 8
    """Ours."""
    repository: Lognormal = Lognormal(median=50_000, spread=0.4, max_value=120_000)
    """Tokens that sessions on one repository begin with. Ours: gives all prompts together AgentX's median."""
    task: Lognormal = Lognormal(median=400, spread=1.0, max_value=20_000)
    """Tokens of what is to be done. Ours."""
    tool: Lognormal = Lognormal(median=340, spread=1.2, max_value=20_000)
    """Tokens of a tool's answer. Ours: with the model's own, 1% of a prompt."""
    answer: Lognormal = Lognormal(median=260, spread=1.2, max_value=16_000)
    """Tokens. TraceLab's mean is 523 (186.9 million in 357,161 steps); the spread is ours."""
    mean_turns: float = 84.0
    """TraceLab: 357,161 steps in 4,265 sessions."""
    pause: Lognormal = Lognormal(median=4.0, spread=1.06, max_value=600.0)
    """Seconds. Nvidia tells of a session of 283 requests in 33 minutes, which is a mean of 7; the spread is ours."""
    max_tokens: int = 400_000
    """A prompt that would be longer ends the session: agents sum up and begin again. Ours."""
    domain: str = "code"

    def session(self, name: str, rng: Random) -> Iterator[Turn]:
        index = rng.randrange(self.repositories)
        repository = PromptSegment(f"repository {index}", self.repository.count(Random(f"repository {index}")))
        begin = (PromptSegment("agent", self.system_tokens), repository)
        own = self.task.count(rng)
        known = self.system_tokens + repository.tokens
        while True:
            answer = self.answer.count(rng)
            yield Turn(known + own, answer, (*begin, PromptSegment(f"agent {name}", own)), self.pause.number(rng))
            own += answer + self.tool.count(rng)
            if known + own > self.max_tokens:
                return


@dataclass(frozen=True)
class Million:
    """Prompts near the longest that models of a million tokens take, each read once. All numbers are ours; have few."""

    min_tokens: int = 900_000
    max_tokens: int = 1_000_000
    """Prompts are spread evenly between the two. Answers still fit into 2**20."""
    answer: Lognormal = Lognormal(median=1000, spread=0.7, max_value=16_000)
    """Tokens."""
    domain: str = ""

    @property
    def mean_turns(self) -> float:
        return 1.0

    def session(self, name: str, rng: Random) -> Iterator[Turn]:
        yield Turn(rng.randint(self.min_tokens, self.max_tokens), self.answer.count(rng))


MIXES: Mapping[str, Mix] = {
    "chat": Chat(),
    "coding_agent": CodingAgent(),
    "million": Million(),
    "1k1k": FixedSize(1024, 1024),
    "8k1k": FixedSize(8192, 1024),
}
"""By name. The two fixed ones are of sizes at which InferenceX publishes."""


def mix_named(name: str) -> Mix:
    if name not in MIXES:
        raise ConfigError(f"{name}: no such mix; there are {', '.join(MIXES)}")
    return MIXES[name]


def generate(
    mix: Mix,
    *,
    rate: float,
    seed: int,
    requests: int | None = None,
    seconds: float | None = None,
    burstiness: float = 1.0,
    tier: str = "",
) -> Workload:
    """Generate a number of requests of a mix, or those of a number of seconds, at `rate` per second.

    An arrival is the next turn of the session that has been ready for longest. If none is, it comes from another one: a
    new one as often as sessions end, else one that was under way at the start, whose earlier turns are not simulated.
    """
    if (requests is None) == (seconds is None):
        raise ConfigError("a workload has either a number of requests or of seconds")
    for name, value in (("rate", rate), ("burstiness", burstiness), ("requests", requests), ("seconds", seconds)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; should be above 0, and finite")
    endless = _arrivals(mix, arrival_times(rate, seed, burstiness), seed, tier)
    if seconds is None:
        return Workload(tuple(islice(endless, requests)))
    within = tuple(takewhile(lambda arrival: arrival.at <= seconds, endless))
    if not within:
        raise ConfigError(f"nothing arrives in {seconds} seconds at {rate} a second; ask for more")
    return Workload(within)


def arrival_times(rate: float, seed: int, burstiness: float = 1.0) -> Iterator[float]:
    """Seconds, without end. What is between two is gamma distributed with shape `burstiness` and mean 1 / `rate`, as in
    vLLM's benchmark: 1 is a Poisson process, less has more bursts, more is more even."""
    rng = Random(f"times {seed}")
    now = 0.0
    while True:
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield now


def _arrivals(mix: Mix, times: Iterator[float], seed: int, tier: str) -> Iterator[Arrival]:
    waiting: list[tuple[float, int, Turn, Iterator[Turn]]] = []  # by when the turn may come; the number breaks ties
    ends = Random(f"ends {seed}")
    begun = new = 0
    for arrived, now in enumerate(times, start=1):
        if waiting and waiting[0][0] <= now:
            _, number, turn, session = heappop(waiting)
        else:
            number, begun = begun, begun + 1
            is_new = (new + 1) * mix.mean_turns <= arrived
            new += is_new
            session = _session(mix, f"{seed}.{number}", is_new)
            turn = next(session)
        yield Arrival(
            at=now,
            input_tokens=turn.input_tokens,
            output_tokens=turn.output_tokens,
            shared=turn.shared,
            domain=mix.domain,
            tier=tier,
        )
        goes_on = ends.random() * mix.mean_turns >= 1
        if goes_on and (following := next(session, None)):
            heappush(waiting, (now + turn.pause, number, following, session))


def _session(mix: Mix, name: str, is_new: bool) -> Iterator[Turn]:
    """Return a session from its beginning, or from a random turn of it if it is not new."""
    age = Random(f"age {name}")
    session = mix.session(name, Random(f"session {name}"))
    turn = next(session)
    while not is_new and age.random() * mix.mean_turns >= 1:
        turn = next(session, turn)
    return chain([turn], session)
