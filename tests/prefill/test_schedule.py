"""Which prompts get how many tokens of a step."""

from dataclasses import replace

import pytest
import torch

from engine.pages import CacheLayout, Entry, Pages, PageStore
from engine.stats import Counters
from engine.types import Request, Sampling, StopRules
from prefill.schedule import Prompt, PromptChunk, PromptSchedule, WaitingPrompt

PAGE_TOKENS, WINDOW = 16, 112
FULL = Entry(layer=0, name="k", shape=(1,), dtype=torch.float32)
SLIDING = replace(FULL, layer=1, window=WINDOW)


def schedule(num_pages: int = 50, max_requests: int = 10, keeps_hidden: bool = False) -> PromptSchedule:
    layout = CacheLayout.of([FULL], PAGE_TOKENS)
    pages = Pages(layout, PageStore(layout, {"full": num_pages}, torch.device("cpu")))
    return PromptSchedule(pages, 40, max_requests, Counters(), keeps_hidden)


def prompt(name: str, tokens: int, last: int = 1, arrived: float = 0.0) -> WaitingPrompt:
    said = (*(1,) * (tokens - 1), last)
    request = Request(id=name, prompt=said, sampling=Sampling(), stop=StopRules(max_tokens=1))
    return WaitingPrompt(request, arrived)


def queue(prompts: PromptSchedule, coming: list[WaitingPrompt]) -> None:
    for one in coming:
        prompts.add(one)


def advance(prompts: PromptSchedule, now: float) -> list[PromptChunk]:
    """The chunks of the next step, which is then computed."""
    chunks = prompts.next(now)
    tokens = [chunk.num_tokens for chunk in chunks]
    for chunk, count in zip(chunks, tokens, strict=True):
        chunk.prompt.computed += count
        if chunk.prompt.remaining == 0:
            prompts.finish(chunk.prompt)
    return chunks


def step(prompts: PromptSchedule, now: float = 5.0) -> dict[str, int]:
    """Tokens of each prompt in the next step, which is then computed."""
    return {chunk.prompt.request.id: chunk.num_tokens for chunk in advance(prompts, now)}


def compute(prompts: PromptSchedule, name: str, now: float = 5.0) -> Prompt:
    """Step until a prompt is computed, which takes part in every step until then. It keeps its pages."""
    while True:
        (prompt,) = [chunk.prompt for chunk in advance(prompts, now) if chunk.prompt.request.id == name]
        if not prompt.remaining:
            return prompt


def test_one_budget_is_shared_in_the_order_of_arrival() -> None:
    prompts = schedule()
    queue(prompts, [prompt("a", 25), prompt("b", 25), prompt("c", 5)])

    assert step(prompts) == {"a": 25, "b": 15}
    assert step(prompts) == {"b": 10, "c": 5}
    assert step(prompts) == {}


def test_a_long_prompt_is_chunked_and_the_rest_of_its_last_step_is_used() -> None:
    prompts = schedule()
    queue(prompts, [prompt("long", 90), prompt("b", 60)])

    assert [step(prompts) for _ in range(4)] == [{"long": 40}, {"long": 40}, {"long": 10, "b": 30}, {"b": 30}]


def test_at_most_max_requests_run_at_once() -> None:
    prompts = schedule(max_requests=2)
    queue(prompts, [prompt(name, 5) for name in "abc"])

    assert step(prompts) == {"a": 5, "b": 5}
    assert step(prompts) == {"c": 5}


def test_a_prompt_that_does_not_fit_yet_is_not_overtaken() -> None:
    """A small prompt would fit, but a steady stream of small ones would starve it."""
    prompts = schedule(num_pages=4)
    queue(prompts, [prompt("first", 30), prompt("large", 60), prompt("small", 5)])

    (computed,) = [chunk.prompt for chunk in advance(prompts, now=5.0)]
    assert (computed.request.id, computed.computed) == ("first", 30)
    assert step(prompts) == {}
    prompts._pages.release(computed.tables)
    assert step(prompts) == {"large": 40}


def test_a_prompt_that_starts_no_longer_waits() -> None:
    prompts = schedule()
    waiting = prompt("a", 5)
    queue(prompts, [waiting])

    prompts.next(now=7.0)

    assert (waiting.arrived, waiting.started) == (0.0, 7.0)


def test_a_prompt_is_found_in_every_state() -> None:
    prompts = schedule()
    queue(prompts, [prompt("runs", 90), prompt("waits", 5)])
    prompts.next(now=0.0)

    for name in ("runs", "waits"):
        removed = prompts.remove(name)
        assert removed is not None
        assert removed.id == name
    assert prompts.remove("runs") is None


def few_window_pages() -> PromptSchedule:
    """8 pages of a common beginning, and 6 more in the window's group: what two prompts need at least beside it."""
    layout = CacheLayout.of([FULL, SLIDING], PAGE_TOKENS)
    counts = {"full": 60, f"window{WINDOW}": WINDOW // PAGE_TOKENS + 6}
    pages = Pages(layout, PageStore(layout, counts, torch.device("cpu")))
    tables = pages.open("before")
    assert pages.extend(tables, 128)
    pages.publish(tables, (1,) * 128, 128)
    pages.release(tables)
    return PromptSchedule(pages, chunk_tokens=16, max_requests=10, counters=Counters(), keeps_hidden=False)


def test_the_last_prompt_restarts_when_window_pages_that_it_shares_are_needed() -> None:
    """The older prompt no longer needs pages that the younger one still holds: without them it could not continue."""
    prompts = few_window_pages()
    young, old = prompt("young", 300, last=2, arrived=1.0), prompt("old", 300, last=3)
    prompts.add(young)
    assert step(prompts) == {"young": 16}
    prompts.add(old)

    for name in ("old", "young"):
        prompts._pages.release(compute(prompts, name, now=9.0).tables)

    assert (prompts._counters.preempted, prompts._counters.prompt_tokens) == (1, 300 + 300 + 300)
    assert (old.started, young.started) == (9.0, 5.0)
    prompts._pages.assert_idle()


def test_a_prompt_waits_for_window_pages_that_a_lease_holds() -> None:
    """It shares them with the lease, no longer needs them, and no later prompt could restart instead."""
    prompts = few_window_pages()
    lease = prompts._pages.open("lease")
    assert prompts._pages.reuse(lease, (1,) * 128) == 128
    prompts.add(prompt("a", 300, last=2))
    while step(prompts):
        assert prompts.running[0].remaining

    prompts._pages.release(lease)

    assert step(prompts) == {"a": 16}
    assert prompts._counters.preempted == 0


@pytest.mark.parametrize("keeps_hidden", [False, True])
def test_a_cached_prompt_starts_without_pages_when_its_last_one_cannot_be_copied(keeps_hidden: bool) -> None:
    """It once started with pages that it had released, and released them again at its end."""
    prompts = schedule(num_pages=3, keeps_hidden=keeps_hidden)
    one, pages = prompt("a", 32), prompts._pages
    tables = pages.open("before")
    assert pages.extend(tables, 48)
    pages.publish(tables, one.request.tokens, 32)
    prompts.add(one)
    assert step(prompts) == {}
    pages.release(tables)

    pages.release(compute(prompts, "a").tables)
    pages.assert_idle()


def test_an_urgent_prompt_does_not_start_on_pages_that_a_running_one_will_need() -> None:
    prompts = schedule(num_pages=8)
    prompts.add(prompt("runs", 80))
    step(prompts)
    urgent = prompt("urgent", 80, arrived=-1.0)
    prompts.add(urgent)

    assert step(prompts) == {"runs": 40}
    assert prompts.waiting == [urgent]


@pytest.mark.parametrize(("prompt_logprobs", "rows"), [(False, 1), (True, 40)])
def test_one_row_of_logits_is_computed_unless_prompt_logprobs_are_requested(prompt_logprobs: bool, rows: int) -> None:
    one = prompt("a", 90)
    prompts = schedule()
    prompts.add(replace(one, request=replace(one.request, prompt_logprobs=prompt_logprobs)))

    assert [chunk.num_logits for chunk in prompts.next(now=0.0)] == [rows]
