"""Rows of tokens for training: packed source files, and chat samples made from their functions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.files import atomic_write
from train.corpus import Corpus, SourceFile, digest
from train.tokenizer import END, chat_text, encode

CHAT_ROW_ONE_IN = 16


def packed(tokenizer: PreTrainedTokenizerFast, files: tuple[SourceFile, ...]) -> np.ndarray:
    """Return the files one after another, each ended by the end token: `uint16[tokens]`."""
    return np.concatenate(encode(tokenizer, [file.text + END for file in files]))


def packed_chats(tokenizer: PreTrainedTokenizerFast, files: tuple[SourceFile, ...]) -> np.ndarray:
    """Return every documented function as one chat, in the order of a hash: `uint16[tokens]`."""
    functions = [function for file in files for function in file.functions()]
    functions.sort(key=lambda function: digest(function.path + function.name))
    return np.concatenate(encode(tokenizer, [chat_text(function.request, function.code) for function in functions]))


@dataclass
class TokenRing:
    """Tokens that are read in rows, again from the beginning after the end; `cursor` is what a checkpoint keeps."""

    tokens: np.ndarray
    cursor: int = 0

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` tokens."""
        picked = self.tokens.take(np.arange(self.cursor, self.cursor + count), mode="wrap")
        self.cursor = (self.cursor + count) % len(self.tokens)
        return picked

    def skip_past(self, token: int) -> None:
        """Move the cursor behind the next `token`, so that a row begins where a sample begins."""
        ahead = self.tokens.take(np.arange(self.cursor - 1, self.cursor + 4096), mode="wrap")
        found = np.flatnonzero(ahead == token)
        if len(found):
            self.cursor = (self.cursor + int(found[0])) % len(self.tokens)


class Batches:
    """Rows of packed source files; of every 16 rows one holds whole chats from its first token on.

    The files are read at 15 positions at once, so that a batch holds rows of as many files.
    """

    def __init__(self, text: np.ndarray, chat: np.ndarray, end_token: int) -> None:
        readers = CHAT_ROW_ONE_IN - 1
        self.texts = [TokenRing(text, reader * len(text) // readers) for reader in range(readers)]
        self.chat, self.end_token, self.num_rows = TokenRing(chat), end_token, 0

    @classmethod
    def load(cls, collect: Callable[[], Corpus], tokenizer: PreTrainedTokenizerFast, cache: Path) -> Self:
        """Encode the training files, or read what an earlier call wrote to `cache`."""
        if not cache.exists():
            files = collect().training
            with atomic_write(cache) as partial:
                np.savez(partial, text=packed(tokenizer, files), chat=packed_chats(tokenizer, files))
        with np.load(cache) as stored:
            return cls(stored["text"], stored["chat"], tokenizer.eos_token_id)

    def next(self, rows: int, length: int) -> Tensor:
        """Return the next rows, `int64[rows, length]`."""
        return torch.from_numpy(np.stack([self._row(length) for _ in range(rows)]).astype(np.int64))

    def _row(self, length: int) -> np.ndarray:
        self.num_rows += 1
        reader = self.num_rows % CHAT_ROW_ONE_IN
        if reader < len(self.texts):
            return self.texts[reader].take(length)
        self.chat.skip_past(self.end_token)
        return self.chat.take(length)

    def state(self) -> list[int]:
        """Return what a checkpoint keeps."""
        return [self.num_rows, self.chat.cursor, *(text.cursor for text in self.texts)]

    def restore(self, state: list[int]) -> None:
        """Continue from the `state()` of an earlier run."""
        self.num_rows, self.chat.cursor = state[:2]
        for text, cursor in zip(self.texts, state[2:], strict=True):
            text.cursor = cursor
