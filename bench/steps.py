"""Single steps of a model, without an engine: how close they come to the device's memory bandwidth."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bench.ceiling import ModelCost
from bench.console import TableRow
from bench.device_work import Replay, columns, median_seconds, work_of
from bench.shape import BenchReport
from engine.backend import TorchBackend
from engine.batch import Batch, Row
from engine.models import LoadedModel
from engine.models.preflight import free_memory, gib
from engine.pages import CacheLayout, Pages, PageStore

PAGE_TOKENS = 64
ROUNDS = 10
KERNELS = 8


@dataclass(frozen=True)
class StepShape:
    """The shape of a step: `requests` rows of `tokens` tokens each, after `context` cached ones."""

    requests: int
    tokens: int
    context: int

    @property
    def num_pages(self) -> int:
        return self.requests * -(-(self.context + self.tokens) // PAGE_TOKENS)

    def batch(self, pages: Pages, vocab: int) -> Batch:
        """Build a batch of random tokens."""
        rng = random.Random(0)
        rows = []
        for i in range(self.requests):
            end = self.context + self.tokens
            tables = pages.open(f"{self}-{i}")
            assert pages.extend(tables, end)
            tokens = [rng.randrange(vocab) for _ in range(self.tokens)]
            rows.append(Row(tokens, self.context, tables, num_logits=self.tokens))
        return Batch.of(rows, pages.layout, pages.store.device)


class Stepper:
    """Times steps of one model, each over as many pages as it needs."""

    def __init__(self, report: BenchReport, name: str, model: LoadedModel, copy_bytes_per_second: float) -> None:
        self.report, self.model = report, model
        self._bandwidth = copy_bytes_per_second
        self._layout = CacheLayout.of(model.entries, PAGE_TOKENS)
        self._cost = ModelCost.of(model)
        self._rounds = 2 if report.options.quick else ROUNDS
        self._model = {
            "model": name,
            "parameters": model.num_parameters,
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def rows(self, steps: Sequence[StepShape]) -> list[TableRow]:
        """Time every step that fits into memory, and the bytes per second at which it reads weights and cached rows."""
        rows = []
        for step in steps:
            num_bytes = step.num_pages * sum(group.page_bytes for group in self._layout.groups.values())
            if num_bytes > free_memory(self.model.device) / 2:
                self.report.note(f"{self._model['model']}: {step} needs {gib(num_bytes)} of pages, which do not fit")
                continue
            forward = self._forward(step)
            seconds = median_seconds(forward, self.model.device, self._rounds)
            work = work_of(forward, self.model.device)
            num_tokens, cached = step.requests * step.tokens, step.requests * (step.context + step.tokens)
            rate = self._cost.step_bytes(num_tokens, cached) / seconds
            rates = {"gb_s": rate / 1e9, "of_copy_bandwidth": rate / self._bandwidth}
            rows.append({**self._of(step), "step_ms": seconds * 1e3, **rates, **columns(work, seconds)})
        return rows

    def kernels(self, step: StepShape) -> list[TableRow]:
        """List the kernels that take most of the device's time in a step."""
        work = work_of(self._forward(step), self.model.device)
        longest = list(work.kernels.items())[:KERNELS] if work else []
        return [
            {**self._of(step), "kernel": kernel, "ms": seconds * 1e3, "share": seconds / work.seconds}
            for kernel, seconds in longest
            if work is not None
        ]

    def replayed(self, step: StepShape) -> TableRow:
        """Compare a step with its CUDA graph: the cost of launches. Raises RuntimeError if it cannot be captured."""
        forward = self._forward(step)
        seconds = median_seconds(forward, self.model.device, self._rounds)
        replay = Replay(forward, self.model.device)
        graph_seconds = median_seconds(replay, self.model.device, self._rounds)
        return {
            **self._of(step),
            "eager_ms": seconds * 1e3,
            "graph_ms": graph_seconds * 1e3,
            "eager_over_graph": seconds / graph_seconds,
            "logits_differ_by": float((forward() - replay.output).abs().max()),
        }

    def _of(self, step: StepShape) -> TableRow:
        return {**self._model, "requests": step.requests, "tokens_each": step.tokens, "context": step.context}

    def _forward(self, step: StepShape) -> Callable[[], Tensor]:
        """Return the step as a function that returns logits."""
        counts = dict.fromkeys(self._layout.groups, step.num_pages)
        pages = Pages(self._layout, PageStore(self._layout, counts, self.model.device))
        for entry in self.model.entries:
            pages.store.slab(entry.key).rows.normal_()
        backend = TorchBackend(self.model.module, pages.store)
        batch = step.batch(pages, self.model.config.vocab_size)
        return lambda: backend.forward(batch).logits
