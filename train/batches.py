"""Token rows for training: packed documents, and rows of chat samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.files import atomic_write
from train.corpus import Corpus, Document, digest
from train.tokenizer import END, chat_text, encode

CHAT_ROW_ONE_IN = 16


def packed(tokenizer: PreTrainedTokenizerFast, documents: tuple[Document, ...]) -> np.ndarray:
    """The documents one after another, each ended by the end token: `uint16[tokens]`."""
    return np.concatenate(encode(tokenizer, [document.text + END for document in documents]))


def chats(tokenizer: PreTrainedTokenizerFast, documents: tuple[Document, ...]) -> np.ndarray:
    """Every documented function as one chat, in an order given by a hash: `uint16[tokens]`."""
    functions = [function for document in documents for function in document.functions()]
    functions.sort(key=lambda function: digest(function.path + function.name))
    return np.concatenate(encode(tokenizer, [chat_text(function.request, function.code) for function in functions]))


@dataclass
class Stream:
    """A ring of tokens read in rows; `cursor` is what a resumed run needs."""

    tokens: np.ndarray
    cursor: int = 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens, beginning again at the end of the ring."""
        picked = self.tokens.take(np.arange(self.cursor, self.cursor + count), mode="wrap")
        self.cursor = (self.cursor + count) % len(self.tokens)
        return picked

    def skip_past(self, token: int) -> None:
        """Moves the cursor behind the next `token`, so that a row begins where a sample begins."""
        ahead = self.tokens.take(np.arange(self.cursor - 1, self.cursor + 4096), mode="wrap")
        found = np.flatnonzero(ahead == token)
        if len(found):
            self.cursor = (self.cursor + int(found[0])) % len(self.tokens)


class Batches:
    """Rows of packed documents; of every 16 rows one holds whole chats from its first token on.

    Documents are read at 15 places at once, so that a batch holds rows of as many documents.
    """

    def __init__(self, text: np.ndarray, chat: np.ndarray, end_token: int) -> None:
        places = CHAT_ROW_ONE_IN - 1
        self.texts = [Stream(text, place * len(text) // places) for place in range(places)]
        self.chat, self.end_token, self.num_rows = Stream(chat), end_token, 0

    @classmethod
    def load(cls, collect: Callable[[], Corpus], tokenizer: PreTrainedTokenizerFast, cache: Path) -> Batches:
        """Encodes the training documents, or reads what an earlier call left at `cache`."""
        if not cache.exists():
            corpus = collect()
            text, chat = packed(tokenizer, corpus.training), chats(tokenizer, corpus.training)
            with atomic_write(cache) as partial:
                np.savez(partial, text=text, chat=chat)
        with np.load(cache) as stored:
            return cls(stored["text"], stored["chat"], tokenizer.eos_token_id)

    def next(self, rows: int, length: int) -> Tensor:
        """`int64[rows, length]`."""
        return torch.from_numpy(np.stack([self._row(length) for _ in range(rows)]).astype(np.int64))

    def _row(self, length: int) -> np.ndarray:
        self.num_rows += 1
        place = self.num_rows % CHAT_ROW_ONE_IN
        if place < len(self.texts):
            return self.texts[place].take(length)
        self.chat.skip_past(self.end_token)
        return self.chat.take(length)

    def state(self) -> list[int]:
        return [self.num_rows, self.chat.cursor, *(text.cursor for text in self.texts)]

    def restore(self, state: list[int]) -> None:
        self.num_rows, self.chat.cursor = state[:2]
        for text, cursor in zip(self.texts, state[2:], strict=True):
            text.cursor = cursor
