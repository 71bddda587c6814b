"""Random prompts for a server whose tokenizer is unknown: words that another tokenizer has as single tokens."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.errors import ConfigError


@dataclass(frozen=True)
class Words:
    """Tokens that are a space and a word of ASCII letters.

    Their text has one token per word again, in this tokenizer, because tokenizers split at spaces first. Another
    tokenizer has about as many.
    """

    tokens: list[int]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path) -> "Words":
        """Of a folder with the tokenizer files of a Hugging Face model. Raises ConfigError."""
        if not folder.is_dir():
            raise ConfigError(f"--tokenizer {folder}: there is no such directory")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--tokenizer {folder}: no tokenizer that can be loaded ({' '.join(str(error).split())})"
            ) from None
        special = set(tokenizer.all_special_ids)
        tokens = [t for t in range(len(tokenizer)) if t not in special and _is_word(tokenizer.decode([t, t]))]
        if not tokens:
            raise ConfigError(f"--tokenizer {folder}: has no token that is a space and a word")
        return cls(tokens, tokenizer)

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens)).strip()


def _is_word(twice: str) -> bool:
    """Whether a token is a space and a word, by its text when it comes twice: some tokenizers drop the first space."""
    one, _, two = twice.lstrip(" ").partition(" ")
    return one == two and one.isascii() and one.isalpha()
