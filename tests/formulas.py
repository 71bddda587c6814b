"""What a request's options make of logits, in plain float64 Python, one rule after the other as they are published."""

import math
from collections import Counter
from dataclasses import dataclass

from engine.types import Request, Sampling, StopRules


@dataclass(frozen=True)
class Options:
    """What a request may ask of its draws, under a name."""

    name: str
    sampling: Sampling
    stop: StopRules


def options(name: str, min_tokens: int = 0, stop_token_ids: tuple[int, ...] = (), **sampling: object) -> Options:
    """At temperature 1 if nothing else is said. With two tokens generated, two more can be drawn of each."""
    stop = StopRules(max_tokens=4, min_tokens=min_tokens, stop_token_ids=stop_token_ids, ignore_eos=True)
    return Options(name, Sampling(**{"temperature": 1.0, **sampling}), stop)  # type: ignore[arg-type]


# For a vocabulary of 16, after a prompt and an output that have 1, 2 and 7 among them.
BIAS = ((0, 1.5), (1, -0.75), (6, 0.5))
EVERY_OPTION = [
    options("nothing"),
    options("colder", temperature=0.6),
    options("hotter", temperature=1.7),
    options("top_k", top_k=4),
    options("top_p", top_p=0.7),
    options("min_p", min_p=0.2),
    options("repetition_penalty", repetition_penalty=1.8),
    options("repetition_reward", repetition_penalty=0.6),
    options("presence_penalty", presence_penalty=1.2),
    options("frequency_penalty", frequency_penalty=0.9),
    options("frequency_reward", frequency_penalty=-0.7),
    options("logit_bias", logit_bias=BIAS),
    options("bad_words", bad_words=((6,), (7, 1), (2, 7, 9), (5, 2), (8, 7, 13))),
    options("min_tokens", min_tokens=3, stop_token_ids=(6, 8)),
    options("min_tokens_reached", min_tokens=2),
    options("filters", temperature=1.4, top_k=7, top_p=0.85, min_p=0.06),
    options(
        "logits_processors",
        repetition_penalty=1.3,
        presence_penalty=-0.8,
        frequency_penalty=0.6,
        logit_bias=((7, 1.0), *BIAS),
        bad_words=((4,), (0, 1)),
    ),
    options(
        "everything",
        min_tokens=3,
        stop_token_ids=(9,),
        temperature=0.8,
        top_k=9,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((5, 0.8), (9, 1.5)),
        bad_words=((2, 7, 0), (10,)),
    ),
]


def processed(logits: list[float], request: Request, generated: tuple[int, ...], eos: int) -> list[float]:
    """The probability of each token after the request's prompt and `generated`."""
    edited = _edited([float(logit) for logit in logits], request, generated)
    for token in _forbidden(request, generated, eos):
        edited[token] = -math.inf
    scaled = [logit / request.sampling.temperature for logit in edited]
    weights = [math.exp(logit - max(scaled)) for logit in scaled]
    kept = _kept([weight / sum(weights) for weight in weights], request.sampling)
    return [p / sum(kept) for p in kept]


def _edited(logits: list[float], request: Request, generated: tuple[int, ...]) -> list[float]:
    s = request.sampling
    for token in {*request.prompt, *generated}:
        over = logits[token] / s.repetition_penalty if logits[token] > 0 else logits[token] * s.repetition_penalty
        logits[token] = over
    for token, count in Counter(generated).items():
        logits[token] -= s.presence_penalty + count * s.frequency_penalty
    for token, bias in s.logit_bias:
        logits[token] += bias
    return logits


def _forbidden(request: Request, generated: tuple[int, ...], eos: int) -> set[int]:
    completed = {token for *start, token in request.sampling.bad_words if _ends_with(generated, tuple(start))}
    early = len(generated) < request.stop.min_tokens
    return completed | ({eos, *request.stop.stop_token_ids} if early else set())


def _ends_with(tokens: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return tokens[max(0, len(tokens) - len(end)) :] == end


def _kept(probs: list[float], s: Sampling) -> list[float]:
    """Min-p, then the `top_k` most likely, then of those the fewest whose share is at least `top_p`."""
    probs = [p if p >= s.min_p * max(probs) else 0.0 for p in probs]
    ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
    ranked = ranked[: s.top_k or None]
    total = sum(probs[token] for token in ranked)
    nucleus: list[int] = []
    for token in ranked:
        if sum(probs[other] for other in nucleus) >= s.top_p * total:
            break
        nucleus.append(token)
    return [p if token in nucleus else 0.0 for token, p in enumerate(probs)]
