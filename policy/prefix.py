"""Which replica has seen the beginning of a prompt: a guess, made where requests are sent out."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

Key = int


class PrefixIndex:
    """Replicas by the beginnings of the prompts that they were sent, page by page.

    A replica may have forgotten what it was sent, and knows what others sent it; a wrong guess costs time, never
    tokens, and is right once it has been acted on. Of `max_pages` entries, the ones that were of no use for longest go
    first.
    """

    def __init__(self, page_tokens: int, max_pages: int = 200_000) -> None:
        self._page_tokens = page_tokens
        self._max_pages = max_pages
        self._replicas: OrderedDict[Key, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def note(self, replica: str, tokens: Sequence[int], salt: str = "") -> None:
        """A prompt was sent to a replica, which will keep its full pages."""
        for key in self._keys(tokens, salt):
            self._replicas.setdefault(key, set()).add(replica)
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._max_pages:
            self._replicas.popitem(last=False)

    def known_tokens(self, tokens: Sequence[int], salt: str = "") -> dict[str, int]:
        """For each replica that has some of it: how many tokens of the prompt's beginning. Never all of them: the last
        token is always computed."""
        known: dict[str, int] = {}
        going: set[str] | None = None
        for page, key in enumerate(self._keys(tokens, salt), start=1):
            here = self._replicas.get(key, set())
            going = set(here) if going is None else going & here
            if not going:
                break
            self._replicas.move_to_end(key)
            known.update(dict.fromkeys(going, min(page * self._page_tokens, len(tokens) - 1)))
        return known

    def keep_only(self, replicas: set[str]) -> None:
        """Forget every replica but these."""
        for key in [key for key, here in self._replicas.items() if not here <= replicas]:
            self._replicas[key] &= replicas
            if not self._replicas[key]:
                del self._replicas[key]

    def _keys(self, tokens: Sequence[int], salt: str) -> Iterator[Key]:
        key = hash(salt)
        size = self._page_tokens
        for begin in range(0, len(tokens) - size + 1, size):
            key = hash((key, *tokens[begin : begin + size]))
            yield key
