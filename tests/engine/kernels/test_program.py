"""Tests the state that layers share: arguments belong to the batch, working memory to the pages."""

import copy
import gc
import threading
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.attention import attach
from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.device import ScratchMemory
from engine.kernels import use_kernels
from engine.kernels.native import Library
from engine.kernels.program import call_of
from engine.pages import CacheLayout, Entry, Pages, PageStore
from tests.checkpoints import QWEN3, randomised
from tests.kernels import chosen, each_build

CPU = torch.device("cpu")
ENTRY = Entry(layer=0, name="k", shape=(8,), dtype=torch.float32, window=None)


def batch_over(store: PageStore, tokens: list[int]) -> Batch:
    pages = Pages(store.layout, store)
    tables = pages.open("a")
    assert pages.extend(tables, len(tokens))
    return Batch.of([Row(tokens, 0, tables, len(tokens))], store.layout, CPU)


def angles(num_tokens: int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, num_tokens, 8), torch.zeros(1, num_tokens, 8)


def test_arguments_are_prepared_once_per_batch_and_freed_with_it() -> None:
    layout = CacheLayout.of([ENTRY], 16)
    store = PageStore(layout, dict.fromkeys(layout.groups, 4), CPU)
    slab, batch, positions = store.slab(ENTRY.key), batch_over(store, [1, 2, 3]), angles(3)
    first = call_of(batch, positions, ENTRY.group, slab, slab)
    segments = first.segments

    assert call_of(batch, positions, ENTRY.group, slab, slab) is first
    rotated_otherwise = call_of(batch, angles(3), ENTRY.group, slab, slab)
    assert rotated_otherwise is not first and rotated_otherwise.segments == segments
    changed = replace(batch, slots=dict(batch.slots))
    assert call_of(changed, positions, ENTRY.group, slab, slab).segments != segments

    gc.disable()  # nothing may keep a batch alive in a cycle: its tensors would pile up between collections
    try:
        gone = weakref.ref(batch)
        del batch
        assert gone() is None
    finally:
        gc.enable()


def test_scratch_memory_grows_and_is_reused() -> None:
    scratch = ScratchMemory()
    with torch.inference_mode():
        small = scratch.floats(10)
    small.fill_(1.0)  # outside of inference mode too
    assert scratch.floats(5).data_ptr() == small.data_ptr()
    assert scratch.floats(1000).numel() >= 1000
    assert scratch.floats(10).numel() >= 1000


@each_build
def test_engines_of_several_threads_share_a_model(library: Library) -> None:
    """Each has its own pages and so its own working memory: together they compute what each computes alone."""
    torch.manual_seed(3)
    module: Any = AutoModelForCausalLM.from_config(copy.deepcopy(QWEN3), dtype=torch.float32)
    module = randomised(module).eval().requires_grad_(False)
    layout = CacheLayout.of(attach(module), 16)
    with chosen(library):
        use_kernels(module)

    def logits(tokens: list[int]) -> Tensor:
        store = PageStore(layout, dict.fromkeys(layout.groups, 8), CPU)
        return TorchBackend(module, store).forward(batch_over(store, tokens)).logits

    prompts = [[(7 * n + i) % 200 for i in range(5 + 20 * n)] for n in range(4)]
    alone = [logits(prompt) for prompt in prompts]
    differing: list[int] = []

    def repeat(n: int) -> None:
        for _ in range(20):
            if not torch.equal(logits(prompts[n]), alone[n]):
                differing.append(n)

    threads = [threading.Thread(target=repeat, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differing
