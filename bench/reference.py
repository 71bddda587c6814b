"""The reference: transformers on the same checkpoint, with `generate` and with its continuous batching."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.utils import logging as transformers_logging

from tests.oracle import assert_same

Prompt = tuple[int, ...]
PAGE_TOKENS = 64
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Answers:
    """Greedy tokens, and the margin of each one's logit over the second best."""

    tokens: list[list[int]]
    margins: list[list[float]]

    def ties_with(self, other: list[list[int]]) -> int:
        """Count answers of `other` that differ from a near tie on. Raises AssertionError if one differs elsewhere."""
        return sum(map(assert_same, other, self.tokens, self.margins))


def load(path: Path, device: torch.device) -> PreTrainedModel:
    """Load the checkpoint in float32, with transformers' own attention."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).to(device).eval()


class Generate:
    """Runs `model.generate` on one batch. All prompts are equally long, so nothing is padded."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, prompts: Sequence[Prompt], output_tokens: int) -> list[list[int]]:
        tokens: list[list[int]] = self._run(prompts, output_tokens)[:, len(prompts[0]) :].tolist()
        return tokens

    def answers(self, prompts: Sequence[Prompt], output_tokens: int) -> Answers:
        output = self._run(prompts, output_tokens, return_dict_in_generate=True, output_logits=True)
        margins_TB = [-logits.float().topk(2).values.diff()[:, 0] for logits in output.logits]
        return Answers(output.sequences[:, len(prompts[0]) :].tolist(), torch.stack(margins_TB, dim=1).tolist())

    @torch.inference_mode()
    def _run(self, prompts: Sequence[Prompt], output_tokens: int, **options: bool):  # type: ignore[no-untyped-def]
        ids = torch.tensor(prompts, device=self._model.device)
        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )


class ContinuousBatching:
    """Runs transformers' paged cache and scheduler. Their thread keeps a core busy even when idle, so it runs only
    within `awake`."""

    def __init__(self, model: PreTrainedModel, requests: int, total_tokens: int) -> None:
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # `fault` reports failures
        self._model = model
        self._manager: Any = None
        self._options: dict[str, Any] = {
            "generation_config": GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            "continuous_batching_config": ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=requests * -(-total_tokens // PAGE_TOKENS),
                max_batch_tokens=BATCH_TOKENS,
                max_requests_per_batch=requests,
                allow_block_sharing=False,  # the prompts have nothing in common
            ),
        }

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Start the thread and warm it up. Raises RuntimeError if it cannot run this model."""
        self._manager = self._model.init_continuous_batching(**self._options)
        try:
            with torch.inference_mode():
                self._manager.start()
            (first,) = self._outputs([(0,)], 2)
            if first.error is not None:
                raise RuntimeError(first.error)
            yield
        finally:
            self._manager.stop(block=True, hard_stop=True)

    def __call__(self, prompts: Sequence[Prompt], output_tokens: int) -> list[list[int]]:
        outputs = self._outputs(prompts, output_tokens)
        assert all(output.error is None for output in outputs), outputs[0].error
        return [output.generated_tokens for output in outputs]

    def fault(self) -> str | None:
        """Return why this model cannot be run, or None if it can."""
        try:
            with self.awake():
                return None
        except RuntimeError as error:
            return str(error)

    def _outputs(self, prompts: Sequence[Prompt], output_tokens: int) -> list[GenerationOutput]:
        ids = self._manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=output_tokens)
        outputs: dict[str, GenerationOutput] = {}
        while len(outputs) < len(ids):
            output = self._manager.get_result(timeout=1)
            if output is not None:
                outputs[output.request_id] = output
        return [outputs[i] for i in ids]
