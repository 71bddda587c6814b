"""The text that a drafter learns from: what the target itself says after prompts, written by the engine.

N = sequences, T = tokens of a sequence at most
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.config import Config
from engine.errors import ConfigError
from engine.files import atomic_write
from engine.models import LoadedModel
from engine.pages import CacheLayout
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair
from train.batches import Batches, Stream
from train.corpus import Corpus
from train.drafter_config import TextSection

AT_ONCE = 128  # sequences of a part, which is written whole or not at all
RUNNING = 64
PROMPT_LENGTHS = (32, 64, 128, 192)  # of prompts from the corpus
Tokens = NDArray[np.uint32]


@dataclass(frozen=True)
class Sequences:
    """`token_NT` is zero behind `end_N`. From `first_N` on the target speaks (0: nothing is a prompt)."""

    token_NT: Tokens
    first_N: NDArray[np.int64]
    end_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.token_NT)

    @property
    def num_tokens(self) -> int:
        return int(self.end_N.sum())

    def tokens(self, number: int) -> list[int]:
        """Those of one sequence."""
        found: list[int] = self.token_NT[number, : self.end_N[number]].tolist()
        return found

    def only(self, wanted_N: NDArray[np.bool_]) -> Sequences:
        """Some of them."""
        return Sequences(self.token_NT[wanted_N], self.first_N[wanted_N], self.end_N[wanted_N])

    @property
    def digest(self) -> str:
        """Names the text by all of it."""
        content = hashlib.sha256(np.ascontiguousarray(self.token_NT).tobytes())
        content.update(self.first_N.tobytes() + self.end_N.tobytes())
        return content.hexdigest()[:16]

    @classmethod
    def together(cls, parts: list[Sequences]) -> Sequences:
        columns = [[getattr(part, name) for part in parts] for name in ("token_NT", "first_N", "end_N")]
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class Writer:
    """Has a target write. `folder` keeps what is written, so that an interrupted call goes on where it stopped."""

    model: LoadedModel
    path: Path
    section: TextSection
    folder: Path

    def written(self, report: Callable[[int, int], None]) -> Sequences:
        """All sequences; `report(done, of)` after each part. Raises ConfigError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_identity()
        tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        count, pair = self.section.sequences, None
        corpus = self._corpus(tokenizer) if self.section.prompts == "corpus" or self.section.plain else None
        prompts = self._prompts(tokenizer, corpus)
        parts = []
        for number, first in enumerate(range(0, count, AT_ONCE)):
            report(first, count)
            file = self.folder / f"text-{number:05}.npz"
            some = prompts[first : min(first + AT_ONCE, count)]
            if not file.exists():
                pair = pair or self._pair()
                part = self._continue(pair, some, first)
                with atomic_write(file) as partial:
                    np.savez(partial, **vars(part))
            with np.load(file) as stored:
                parts.append(Sequences(**stored))
        report(count, count)
        if corpus is not None and self.section.plain:
            parts.append(self._plain(corpus))
        return Sequences.together(parts)

    def _check_identity(self) -> None:
        """Raises ConfigError if the folder's text is another target's, or was asked for in another way."""
        own = {"target": self.model.fingerprint, "text": self.section.model_dump(mode="json", exclude={"plain"})}
        file = self.folder / "text.json"
        if not file.exists():
            file.write_text(json.dumps(own, indent=1) + "\n")
        found = json.loads(file.read_text())
        for part, mine in own.items():
            for name, value in mine.items():
                if found[part].get(name) != value:
                    raise ConfigError(
                        f"{file}: {part}.{name} was {found[part].get(name)!r} when this text was written, now it is "
                        f"{value!r}; name another folder, or delete text*.* there to have it written again"
                    )

    def _corpus(self, tokenizer: PreTrainedTokenizerBase) -> Batches:
        return Batches.load(Corpus.collect, tokenizer, self.folder / "corpus.npz")

    def _prompts(self, tokenizer: PreTrainedTokenizerBase, corpus: Batches | None) -> list[list[int]]:
        section = self.section
        if section.prompts == "corpus":
            assert corpus is not None
            lengths = [PROMPT_LENGTHS[i // AT_ONCE % len(PROMPT_LENGTHS)] for i in range(section.sequences)]
            return [corpus.next(1, length)[0].tolist() for length in lengths]
        found = [tokens for _, tokens in prompt_lines(section.prompts, tokenizer, f"text.prompts: {section.prompts}")]
        for i, prompt in enumerate(found, start=1):
            if not 1 <= len(prompt) <= section.tokens - 2:
                raise ConfigError(f"{section.prompts}:{i}: {len(prompt)} tokens; text.tokens is {section.tokens}")
        return [found[i % len(found)] for i in range(section.sequences)]

    def _pair(self) -> Pair:
        """Engines with room for every sequence that runs at once."""
        config = Config.parse({"model": {"path": self.path, "dtype": self.model.fingerprint["dtype"]}})
        layout = CacheLayout.of(self.model.entries, config.model.page_tokens)
        pages = RUNNING * (1 + -(-self.section.tokens // config.model.page_tokens)) + 1
        room = {
            "device": str(self.model.device),
            "cache_bytes": pages * sum(group.page_bytes for group in layout.groups.values()),
            "max_requests": RUNNING,
            "prefix_caching": False,
        }
        model = config.model.model_dump()
        config = Config.parse({"model": model, "prefill": room, "decode": {"default": room}})
        return Pair(config, builder=Builder(config, config.prefill, self.model))

    def _continue(self, pair: Pair, prompts: list[list[int]], first: int) -> Sequences:
        section, requests = self.section, []
        for number, prompt in enumerate(prompts, start=first):
            temperature = section.temperatures[number % len(section.temperatures)]
            sampling = Sampling(temperature=temperature, seed=section.seed * 2**20 + number)
            stop = StopRules(max_tokens=section.tokens - len(prompt), ignore_eos=section.ignore_eos)
            requests.append(Request(id=f"sequence-{number}", prompt=tuple(prompt), sampling=sampling, stop=stop))
        said = pair.generate(requests)
        rows = [prompt + said[request.id] for prompt, request in zip(prompts, requests, strict=True)]
        pair.chunks.clear()
        return _padded(rows, [len(prompt) for prompt in prompts], section.tokens)

    def _plain(self, corpus: Batches) -> Sequences:
        """Rows of the corpus at places evenly spread over it."""
        ring, length = corpus.texts[0].tokens, self.section.tokens
        starts = np.linspace(0, len(ring), self.section.plain, endpoint=False).astype(int)
        rows = [Stream(ring, int(start)).take(length).tolist() for start in starts]
        return _padded(rows, [0] * len(rows), length)


def _padded(rows: list[list[int]], first: list[int], length: int) -> Sequences:
    token_NT = np.zeros((len(rows), length), np.uint32)
    for row, tokens in zip(token_NT, rows, strict=True):
        row[: len(tokens)] = tokens
    return Sequences(token_NT, np.array(first), np.array([len(row) for row in rows]))


def prompt_lines(file: Path, tokenizer: PreTrainedTokenizerBase, named: str) -> list[tuple[dict[str, Any], list[int]]]:
    """What each line of a file of prompts says, and its tokens. Raises ConfigError, which begins with `named`, or with
    the file and the line."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named}: cannot be read ({error})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{named}: holds no prompt")
    found = []
    for number, line in numbered:
        tokens = _prompt(line, f"{file}:{number}", tokenizer)  # first: it says what is wrong with the line
        found.append((json.loads(line), tokens))
    return found


def _prompt(line: str, where: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of one line. Raises ConfigError, which begins with `where`."""
    try:
        content: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None
    match content:
        case {"prompt_token_ids": list(ids)} if all(isinstance(i, int) and 0 <= i < len(tokenizer) for i in ids):
            return ids
        case {"prompt": str(text)}:
            return list(tokenizer(text, add_special_tokens=True)["input_ids"])
        case {"messages": list(messages)}:
            return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    raise ConfigError(f"{where}: has none of prompt (text), messages (a list), prompt_token_ids (of the vocabulary)")
