"""Guesses which replicas have the prefix of a prompt cached, from the prompts that the gateway sent them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

Key = int


class PrefixIndex:
    """Maps the prefixes of prompts, page by page, to the replicas that were sent them.

    It is a guess: a replica may have evicted the pages, or have pages from another gateway. A wrong guess costs time,
    never correctness, and is right once a request has followed it. Beyond `max_pages` entries, the least recently used
    are dropped.
    """

    def __init__(self, page_tokens: int, max_pages: int = 200_000) -> None:
        self._page_tokens = page_tokens
        self._max_pages = max_pages
        self._replicas: OrderedDict[Key, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def note(self, replica: str, tokens: Sequence[int], salt: str = "") -> None:
        """Record that a prompt was sent to a replica, which will cache its full pages."""
        for key in self._keys(tokens, salt):
            self._replicas.setdefault(key, set()).add(replica)
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._max_pages:
            self._replicas.popitem(last=False)

    def known_tokens(self, tokens: Sequence[int], salt: str = "") -> dict[str, int]:
        """Return how many tokens of the prompt's prefix each replica has cached; replicas without any are left out.

        The last token of the prompt never counts, because it is always computed.
        """
        known: dict[str, int] = {}
        matching: set[str] | None = None
        for page, key in enumerate(self._keys(tokens, salt), start=1):
            replicas = self._replicas.get(key, set())
            matching = set(replicas) if matching is None else matching & replicas
            if not matching:
                break
            self._replicas.move_to_end(key)
            known.update(dict.fromkeys(matching, min(page * self._page_tokens, len(tokens) - 1)))
        return known

    def keep_only(self, replicas: set[str]) -> None:
        """Forget every replica but these."""
        for key in [key for key, known in self._replicas.items() if not known <= replicas]:
            self._replicas[key] &= replicas
            if not self._replicas[key]:
                del self._replicas[key]

    def _keys(self, tokens: Sequence[int], salt: str) -> Iterator[Key]:
        key = hash(salt)
        size = self._page_tokens
        for begin in range(0, len(tokens) - size + 1, size):
            key = hash((key, *tokens[begin : begin + size]))
            yield key
