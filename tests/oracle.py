"""transformers' own generate, one prompt at a time: what every served token is compared with."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TIE = 1e-4  # another batch shape moves logits by some 1e-5; closer calls than this are nobody's fault


class Oracle:
    def __init__(self, path: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()

    @torch.inference_mode()
    def greedy(self, prompt: tuple[int, ...], max_tokens: int, eos: bool = True) -> tuple[list[int], list[float]]:
        """The greedy continuation, and for each token how far its logit was ahead of the second best."""
        output = self._model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),  # or token 0 would pass for padding
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=self._model.generation_config.eos_token_id if eos else None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        margins = [-logits[0].topk(2).values.diff().item() for logits in output.logits]
        return output.sequences[0, len(prompt) :].tolist(), margins

    @torch.inference_mode()
    def logprobs(self, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
        """The log-probability of each of `tokens`, said after `prompt`."""
        logits = self._model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        chosen: torch.Tensor = logits.log_softmax(-1)[range(len(tokens)), tokens]
        return chosen


def assert_same(tokens: list[int], expected: list[int], margins: list[float]) -> int:
    """Equal up to the first near-tie of the oracle. Returns the number of ties met (0 or 1)."""
    for i, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)):
        if ours != theirs:
            assert margins[i] < TIE, f"token {i}: {ours}, transformers {theirs}, ahead by {margins[i]:.2e}"
            return 1
    assert len(tokens) == len(expected)
    return 0
