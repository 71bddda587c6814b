"""Makes random text prompts for a server whose tokenizer is unknown, of words that are one token in another."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.errors import ConfigError


@dataclass(frozen=True)
class Words:
    """Tokens that are a space and a word of ASCII letters.

    Tokenizers split at spaces first, so n such tokens, decoded and encoded again, are n tokens; another tokenizer has
    about as many.
    """

    tokens: list[int]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path) -> "Words":
        """Load the tokenizer of a folder of a Hugging Face model. Raises ConfigError."""
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
    """Tell if a token is a space and a word from its text when decoded twice: some decoders drop the first space."""
    one, _, two = twice.lstrip(" ").partition(" ")
    return one == two and one.isascii() and one.isalpha()
