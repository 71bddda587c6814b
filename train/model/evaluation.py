"""Measure an exported checkpoint on held-out files: loss, baselines, positions, MTP agreement, samples.

B rows, T tokens, D hidden size, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from engine.drafters.mtp import MTPLayer
from train.batches import packed
from train.corpus import Corpus, SourceFile, digest
from train.model.attention import ATTENTION
from train.model.baselines import Bigram, Unigram
from train.model.mtp import load_mtp, mtp_states
from train.tokenizer import END, VOCAB_SIZE, encode

BUCKETS = (0, 64, 256, 512, 1024, 2048, 4096, 8192)
ROW_TOKENS = 2048
POSITION_ROWS = 20
MTP_TOKENS = 2**17
SAMPLE_TOKENS = 96
ACCEPTANCE_PROMPTS, ACCEPTANCE_PROMPT_TOKENS, ACCEPTANCE_TOKENS = 12, 128, 96


@dataclass(frozen=True)
class Checkpoint:
    """An exported model as it is shipped (bfloat16 weights), computed in float32."""

    model: DeepseekV3ForCausalLM
    mtp: MTPLayer
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        model = DeepseekV3ForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, attn_implementation=ATTENTION
        )
        mtp = load_mtp(model.config, load_file(folder / "model.safetensors"))
        return cls(model.to(device).eval(), mtp.to(device), AutoTokenizer.from_pretrained(folder))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Return the states after the final norm, `[B, T, D]`."""
        hidden_BTD: Tensor = self.model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        return hidden_BTD

    def mtp_logits(self, tokens_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Return logits `[B, T-1, V]`: row i predicts token i+2."""
        logits_BTV: Tensor = self.model.lm_head(mtp_states(self.model, self.mtp, tokens_BT, hidden_BTD))
        return logits_BTV

    def generate(self, prompt_BT: Tensor, num_tokens: int, stop: bool) -> Tensor:
        """Return prompt and greedy continuation; with `stop` it may end at the end token (one row only).

        Every token is computed from the whole row again: slow, but without a cache that could be wrong.
        """
        tokens_BT = prompt_BT
        for _ in range(num_tokens):
            logits_BV = self.model.lm_head(self.hidden(tokens_BT)[:, -1])
            tokens_BT = torch.cat([tokens_BT, logits_BV.argmax(-1, keepdim=True)], dim=1)
            if stop and tokens_BT[0, -1] == self.tokenizer.eos_token_id:
                break
        return tokens_BT


def rows(tokens: np.ndarray, length: int) -> Iterator[Tensor]:
    """Yield rows `int64[1, length + 1]` that overlap by one token; the last may be shorter."""
    for start in range(0, len(tokens) - 1, length):
        yield torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))[None]


def token_losses(checkpoint: Checkpoint, tokens: np.ndarray, length: int) -> np.ndarray:
    """Return the nats of each of `tokens[1:]`, computed in rows of `length` tokens."""
    losses = []
    for row_BT in rows(tokens, length):
        hidden_BTD = checkpoint.hidden(row_BT[:, :-1])
        losses.append(
            functional.cross_entropy(checkpoint.model.lm_head(hidden_BTD)[0], row_BT[0, 1:], reduction="none")
        )
    return torch.cat(losses).numpy()


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the bytes that each token encodes (one per character in byte-level BPE; special tokens encode none)."""
    sizes = np.array([len(token) for token in tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE))])
    sizes[tokenizer.all_special_ids] = 0
    return sizes


def by_position(checkpoint: Checkpoint, tokens: np.ndarray) -> dict[str, float]:
    """Return the mean loss of the positions in each bucket, over the first 20 full rows of the longest context."""
    length = BUCKETS[-1]
    full = tokens[: min(POSITION_ROWS, (len(tokens) - 1) // length) * length + 1]
    losses = token_losses(checkpoint, full, length).reshape(-1, length)
    return {f"{start}-{end}": float(losses[:, start:end].mean()) for start, end in pairwise(BUCKETS)}


def by_package(files: tuple[SourceFile, ...], sizes: list[int], losses: np.ndarray) -> dict[str, float]:
    """Return the mean loss of each package's tokens; file k has `sizes[k]` tokens (the very first is not predicted)."""
    parts = np.split(losses, np.cumsum(sizes)[:-1] - 1)
    found: dict[str, list[np.ndarray]] = {}
    for file, part in zip(files, parts, strict=True):
        found.setdefault(file.package, []).append(part)
    return {package: float(np.concatenate(found[package]).mean()) for package in sorted(found)}


def held_out_loss(
    checkpoint: Checkpoint, files: tuple[SourceFile, ...], training_tokens: np.ndarray
) -> dict[str, object]:
    """Measure the loss of the model and of the counting baselines on the same held-out tokens."""
    encoded = encode(checkpoint.tokenizer, [file.text + END for file in files])
    tokens = np.concatenate(encoded)
    losses = token_losses(checkpoint, tokens, ROW_TOKENS)
    num_bytes = token_bytes(checkpoint.tokenizer)[tokens[1:]].sum()
    return {
        "files": len(files),
        "tokens": len(losses),
        "row_tokens": ROW_TOKENS,
        "loss": float(losses.mean()),
        "perplexity": math.exp(losses.mean()),
        "bits_per_byte": float(losses.sum() / math.log(2) / num_bytes),
        "unigram_loss": Unigram(training_tokens, VOCAB_SIZE).loss(tokens),
        "bigram_loss": Bigram(training_tokens, VOCAB_SIZE).loss(tokens),
        "loss_by_package": by_package(files, [len(part) for part in encoded], losses),
        "loss_by_position": by_position(checkpoint, tokens),
    }


def mtp_agreement(checkpoint: Checkpoint, tokens: np.ndarray, length: int = ROW_TOKENS) -> dict[str, float]:
    """Count how often the MTP layer's best token is the text's, and the main model's own, two tokens ahead."""
    right = agreed = total = 0
    loss = 0.0
    for row_BT in rows(tokens, length):
        if row_BT.shape[1] < 3:
            continue
        hidden_BTD = checkpoint.hidden(row_BT)
        drafts_TV = checkpoint.mtp_logits(row_BT, hidden_BTD)[0, :-1]
        truth_T = row_BT[0, 2:]
        greedy_T = checkpoint.model.lm_head(hidden_BTD)[0, 1:-1].argmax(-1)
        right += int((drafts_TV.argmax(-1) == truth_T).sum())
        agreed += int((drafts_TV.argmax(-1) == greedy_T).sum())
        loss += float(functional.cross_entropy(drafts_TV, truth_T, reduction="sum"))
        total += len(truth_T)
    return {"loss": loss / total, "top1": right / total, "agreement": agreed / total}


def greedy_acceptance(checkpoint: Checkpoint, tokens: np.ndarray) -> float:
    """Return the share of the main model's greedy tokens that the MTP layer predicts, given the token before."""
    starts = np.linspace(0, len(tokens) - ACCEPTANCE_PROMPT_TOKENS, ACCEPTANCE_PROMPTS).astype(int)
    prompts = np.stack([tokens[start : start + ACCEPTANCE_PROMPT_TOKENS] for start in starts])
    text_BT = checkpoint.generate(torch.from_numpy(prompts.astype(np.int64)), ACCEPTANCE_TOKENS, stop=False)
    drafts_BT = checkpoint.mtp_logits(text_BT, checkpoint.hidden(text_BT)).argmax(-1)
    first = ACCEPTANCE_PROMPT_TOKENS - 1
    return float((drafts_BT[:, first:-1] == text_BT[:, first + 2 :]).float().mean())


def samples(checkpoint: Checkpoint, files: tuple[SourceFile, ...], count: int = 3) -> list[dict[str, str]]:
    """Complete held-out functions greedily: as source, and as chats."""
    functions = [function for file in files for function in file.functions()]
    functions = sorted(functions, key=lambda f: digest("sample " + f.path + f.name))[: 2 * count]
    found = []
    for index, function in enumerate(functions):
        kind = "source" if index < count else "chat"
        prompt = function.prompt if kind == "source" else f"<|user|>{function.request}<|assistant|>"
        ids = torch.tensor([checkpoint.tokenizer.encode(prompt)])
        reply = checkpoint.generate(ids, SAMPLE_TOKENS, stop=True)[0, ids.shape[1] :]
        text = checkpoint.tokenizer.decode(reply)
        found.append({"kind": kind, "path": function.path, "name": function.name, "prompt": prompt, "reply": text})
    return found


@torch.inference_mode()
def evaluate(folder: Path, corpus: Corpus, training_tokens: np.ndarray) -> dict[str, Any]:
    """Measure all that the model card reports about quality. The baselines count `training_tokens`."""
    checkpoint = Checkpoint.load(folder)
    tokens = packed(checkpoint.tokenizer, corpus.held_out)
    mtp = mtp_agreement(checkpoint, tokens[:MTP_TOKENS])
    mtp["unigram_top1"] = Unigram(training_tokens, VOCAB_SIZE).top1(tokens[2:MTP_TOKENS])
    mtp["greedy_acceptance"] = greedy_acceptance(checkpoint, tokens)
    return {
        "held_out": held_out_loss(checkpoint, corpus.held_out, training_tokens),
        "mtp": mtp,
        "samples": samples(checkpoint, corpus.held_out),
    }
