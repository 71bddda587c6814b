"""Features: the target's hidden states for every token of the text, computed in each step or kept on disk.

A folder of kept features has `features.json`, which names their target and text, and shards of SHARD_SEQUENCES
sequences each: plain numbers, token after token, [tokens, F * D] as `FrozenTarget.states` returns them. A shard is
written whole or not at all.
"""

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.files import atomic_write
from engine.models.preflight import gib
from train.drafter.identity import claim
from train.drafter.sequences import Sequences
from train.drafter.target import FrozenTarget

SHARD_SEQUENCES = 64
BATCH_SEQUENCES = 16
SPARE_BYTES = 2**30  # stay free on the disk


class Features(Protocol):
    """A source of hidden states."""

    def states(self, numbers: Sequence[int]) -> list[Tensor]:
        """Return the states of these sequences of the text, [T, F * D] each."""
        ...


@dataclass(frozen=True)
class OnlineFeatures:
    """Features that are computed again for every step."""

    target: FrozenTarget
    text: Sequences

    def states(self, numbers: Sequence[int]) -> list[Tensor]:
        return self.target.states([self.text.tokens(number) for number in numbers])


@dataclass(frozen=True)
class CachedFeatures:
    """Features that are computed once and kept in `folder`."""

    target: FrozenTarget
    text: Sequences
    folder: Path
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """The bytes that all features take."""
        return self.text.num_tokens * self.target.state_size * self.dtype.itemsize

    def prepare(self, report: Callable[[int, int], None]) -> None:
        """Compute the shards that are missing; `report(done, total)` counts sequences.

        Raises ConfigError if the folder holds features of another target or text, or if the disk has no room for those
        that are missing; finished shards stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {
            "target": self.target.model.fingerprint,
            "drafter.target_layer_ids": list(self.target.tap_layers),
            "features.dtype": str(self.dtype).removeprefix("torch."),
            "text": self.text.digest,
        }
        remedy = f"name another folder, or delete {self.folder}"
        claim(self.folder / "features.json", own, "these features were computed", remedy)
        missing = [shard for shard in range(self._num_shards) if self._size(shard) != self._bytes(shard)]
        self._check_room(sum(self._bytes(shard) for shard in missing))
        for done, shard in enumerate(missing, start=self._num_shards - len(missing)):
            report(done * SHARD_SEQUENCES, len(self.text))
            self._write(shard)
        report(len(self.text), len(self.text))

    def states(self, numbers: Sequence[int]) -> list[Tensor]:
        return [self._states(number) for number in numbers]

    def _states(self, number: int) -> Tensor:
        shard, first = number // SHARD_SEQUENCES, number // SHARD_SEQUENCES * SHARD_SEQUENCES
        begin = int(self.text.end_N[first:number].sum())
        return self._shards[shard][begin : begin + int(self.text.end_N[number])].float()

    @cached_property
    def _shards(self) -> list[Tensor]:
        return [self._opened(shard) for shard in range(self._num_shards)]

    def _opened(self, shard: int) -> Tensor:
        file, size = self._file(shard), self._bytes(shard)
        if self._size(shard) != size:
            raise ConfigError(f"{file}: {self._size(shard)} bytes, should be {size}: cut off; start again to mend it")
        numbers = size // self.dtype.itemsize
        mapped = torch.from_file(str(file), shared=False, size=numbers, dtype=self.dtype)
        return mapped.view(-1, self.target.state_size)

    def _write(self, shard: int) -> None:
        file = self._file(shard)
        numbers = range(shard * SHARD_SEQUENCES, min((shard + 1) * SHARD_SEQUENCES, len(self.text)))
        try:
            with atomic_write(file) as partial, partial.open("wb") as output:
                for first in range(0, len(numbers), BATCH_SEQUENCES):
                    some = [self.text.tokens(number) for number in numbers[first : first + BATCH_SEQUENCES]]
                    for state_TF in self.target.states(some):
                        kept = state_TF.to("cpu", self.dtype).contiguous()
                        output.write(kept.view(torch.uint8).numpy().tobytes())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"{file}: {error.strerror}; {shard} of {self._num_shards} shards stay, and a run with more room "
                "continues from there (or set features.cache: false)"
            ) from None

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed + SPARE_BYTES > free:
            raise ConfigError(
                f"{self.folder}: features of {self.text.num_tokens} tokens take {gib(self.num_bytes)}; {gib(needed)} "
                f"of that is missing, and the disk has {gib(free)} free (set features.cache: false, or fewer "
                "text.sequences)"
            )

    @property
    def _num_shards(self) -> int:
        return -(-len(self.text) // SHARD_SEQUENCES)

    def _file(self, shard: int) -> Path:
        return self.folder / f"features-{shard:05}.bin"

    def _size(self, shard: int) -> int:
        file = self._file(shard)
        return file.stat().st_size if file.exists() else 0

    def _bytes(self, shard: int) -> int:
        tokens = int(self.text.end_N[shard * SHARD_SEQUENCES : (shard + 1) * SHARD_SEQUENCES].sum())
        return tokens * self.target.state_size * self.dtype.itemsize
