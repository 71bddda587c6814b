"""The names of full pages, by which another request that begins with the same tokens finds them.

A page's content depends on all tokens up to its end, so its name covers them all, and the tenant's salt:

    digest(page 0) = H(H(salt), tokens of page 0)      digest(page i) = H(digest(page i-1), tokens of page i)

Names are equal only if digests *and* the page's own tokens are equal, so a hash collision does no harm.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

DIGEST_BYTES = 16


@dataclass(frozen=True)
class PageName:
    """The content of a full page: a digest of all tokens up to its end, and its own tokens."""

    digest: bytes
    tokens: tuple[int, ...]

    def __hash__(self) -> int:
        return hash(self.digest)


class PrefixNames:
    """The names of the full pages of one growing token sequence."""

    def __init__(self, page_tokens: int, salt: str = "") -> None:
        self._page_tokens = page_tokens
        self._root = blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"salt").digest()
        self._names: list[PageName] = []

    def of(self, tokens: Sequence[int], num_tokens: int) -> list[PageName]:
        """Return the names of the pages that the first `num_tokens` of `tokens` fill. Named tokens must not change."""
        size = self._page_tokens
        for start in range(len(self._names) * size, num_tokens - size + 1, size):
            own = tuple(tokens[start : start + size])
            parent = self._names[-1].digest if self._names else self._root
            digest = blake2b(parent + array("q", own).tobytes(), digest_size=DIGEST_BYTES).digest()
            self._names.append(PageName(digest, own))
        return self._names[: num_tokens // size]
