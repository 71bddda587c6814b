"""What the target itself says after prompts of the corpus: the text on which a drafter is trained and measured.

B = sequences, T = tokens of a sequence, V = vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.batches import Batches

PROMPT_LENGTHS = (32, 64, 128, 192)
TEMPERATURES = (0.0, 0.8, 1.0, 1.0)
GENERATED_AT_ONCE = 128


@torch.inference_mode()
def continue_prompts(model: Any, prompt_BT: Tensor, length: int, temperature_B: Tensor, seed: int) -> Tensor:
    """`int64[B, length]`: prompts and what the model says after them, at each row's temperature (0 is greedy).

    The end token ends nothing: the model was trained on packed documents and begins another one.
    """
    generator = torch.Generator(prompt_BT.device).manual_seed(seed)
    sharpness_B1 = torch.where(temperature_B > 0, temperature_B, 1.0).reciprocal()[:, None]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    tokens_BT, fed_BT, cache = prompt_BT, prompt_BT, None
    while tokens_BT.shape[1] < length:
        output = model(fed_BT, cache=cache, use_cache=True, logits_to_keep=1)
        cache, logits_BV = output.cache, output.logits[:, -1].float()
        uniform_BV = torch.rand(logits_BV.shape, generator=generator, device=logits_BV.device)
        drawn_BV = logits_BV * sharpness_B1 - torch.log(-torch.log(uniform_BV))  # Gumbel-max
        fed_BT = torch.where(temperature_B[:, None] > 0, drawn_BV, logits_BV).argmax(-1, keepdim=True)
        tokens_BT = torch.cat([tokens_BT, fed_BT], dim=1)
    model.set_attn_implementation(implementation)
    return tokens_BT


def written(
    model: Any, batches: Batches, count: int, length: int, folder: Path, report: Callable[[str], None]
) -> np.ndarray:
    """`uint16[count, length]`: prompts of the corpus (and of its chats) with continuations, a fourth of them greedy.

    Written to `folder` in parts, each once: an interrupted call goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temperature_B = torch.tensor(TEMPERATURES).repeat(GENERATED_AT_ONCE // len(TEMPERATURES))
    parts = []
    for number in range(-(-count // GENERATED_AT_ONCE)):
        prompt_BT = batches.next(GENERATED_AT_ONCE, PROMPT_LENGTHS[number % len(PROMPT_LENGTHS)])
        file = folder / f"part-{number:04}.npy"
        if not file.exists():
            tokens_BT = continue_prompts(model, prompt_BT, length, temperature_B, seed=number)
            partial = file.with_suffix(".partial.npy")
            np.save(partial, tokens_BT.numpy().astype(np.uint16))
            partial.rename(file)
            report(f"{(number + 1) * GENERATED_AT_ONCE} of {count} sequences")
        parts.append(np.load(file))
    return np.concatenate(parts)[:count]
