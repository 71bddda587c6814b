"""Which prompts get how many tokens of a step."""

import torch

from engine.facts import Counters
from engine.pages import CacheLayout, Entry, Pages, PageStore
from engine.types import Request, Sampling, StopRules
from prefill.schedule import Prompt, PromptSchedule

LAYOUT = CacheLayout.of([Entry(layer=0, name="k", shape=(1,), dtype=torch.float32)], 16)


def schedule(num_pages: int = 50, max_requests: int = 10) -> PromptSchedule:
    pages = Pages(LAYOUT, PageStore(LAYOUT, {"full": num_pages}, torch.device("cpu")))
    return PromptSchedule(pages, chunk_tokens=40, max_requests=max_requests, counters=Counters())


def prompt(name: str, tokens: int) -> Prompt:
    request = Request(id=name, prompt=(1,) * tokens, sampling=Sampling(), stop=StopRules(max_tokens=1))
    return Prompt(request, arrived=0.0)


def queue(prompts: PromptSchedule, coming: list[Prompt]) -> None:
    for one in coming:
        prompts.add(one)


def step(prompts: PromptSchedule) -> dict[str, int]:
    """Tokens of each prompt in the next step, which is then computed."""
    chunks = prompts.next(now=5.0)
    for chunk in chunks:
        chunk.prompt.computed = chunk.end
        if chunk.prompt.remaining == 0:
            prompts.running.remove(chunk.prompt)
    return {chunk.prompt.request.id: chunk.num_tokens for chunk in chunks}


def test_one_budget_is_shared_in_the_order_of_arrival() -> None:
    prompts = schedule()
    queue(prompts, [prompt("a", 25), prompt("b", 25), prompt("c", 5)])

    assert step(prompts) == {"a": 25, "b": 15}
    assert step(prompts) == {"b": 10, "c": 5}
    assert step(prompts) == {}


def test_a_long_prompt_goes_in_chunks_and_the_rest_of_the_last_one_is_used() -> None:
    prompts = schedule()
    queue(prompts, [prompt("long", 90), prompt("b", 60)])

    assert [step(prompts) for _ in range(4)] == [{"long": 40}, {"long": 40}, {"long": 10, "b": 30}, {"b": 30}]


def test_no_more_prompts_run_at_once_than_were_configured() -> None:
    prompts = schedule(max_requests=2)
    queue(prompts, [prompt(name, 5) for name in "abc"])

    assert step(prompts) == {"a": 5, "b": 5}
    assert step(prompts) == {"c": 5}


def test_a_prompt_that_does_not_fit_yet_is_not_overtaken() -> None:
    """A small prompt could pass it; but then a steady stream of small ones would keep it out for ever."""
    prompts = schedule(num_pages=4)
    first, large, small = prompt("first", 30), prompt("large", 60), prompt("small", 5)
    queue(prompts, [first, large, small])

    assert step(prompts) == {"first": 30}
    assert step(prompts) == {}
    assert first.tables is not None
    prompts._pages.release(first.tables)
    assert step(prompts) == {"large": 40}


def test_waiting_ends_when_a_prompt_starts() -> None:
    prompts = schedule()
    waiting = prompt("a", 5)
    queue(prompts, [waiting])

    prompts.next(now=7.0)

    assert (waiting.arrived, waiting.started) == (0.0, 7.0)


def test_a_prompt_is_found_wherever_it_is() -> None:
    prompts = schedule()
    queue(prompts, [prompt("runs", 90), prompt("waits", 5)])
    prompts.next(now=0.0)

    for name in ("runs", "waits"):
        removed = prompts.remove(name)
        assert removed is not None
        assert removed.request.id == name
    assert prompts.remove("runs") is None
