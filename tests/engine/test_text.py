from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import CheckpointRefused
from engine.text import UNFINISHED, Text, TextStream
from tests.checkpoints import byte_tokenizer

TEXT = Text(byte_tokenizer())
bytes_of_text = st.text(max_size=12).map(lambda text: text.encode())
bytes_of_noise = st.lists(st.sampled_from(b"a\x80\xbf\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff"), max_size=12).map(bytes)
outputs = st.one_of(bytes_of_text, bytes_of_noise, st.tuples(bytes_of_text, bytes_of_noise).map(b"".join))


def tokens_of(data: bytes) -> tuple[int, ...]:
    """One token for each byte: every character can be cut anywhere."""
    return tuple(BYTE_TOKENS[byte] for byte in data)


def byte_tokens() -> dict[int, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's table: these stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    char = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {byte: alphabet.index(char[byte]) for byte in range(256)}


BYTE_TOKENS = byte_tokens()


def cut(tokens: tuple[int, ...], sizes: list[int]) -> list[tuple[int, ...]]:
    pieces = []
    for size in sizes:
        pieces.append(tokens[:size])
        tokens = tokens[size:]
    return [*pieces, tokens]


@given(bytes_of_text, outputs, st.lists(st.integers(0, 4), max_size=8))
def test_the_pieces_add_up_to_the_text_of_all_tokens(prompt: bytes, output: bytes, sizes: list[int]) -> None:
    stream = TextStream(TEXT, tokens_of(prompt))

    pieces = [stream.push(tokens) for tokens in cut(tokens_of(output), sizes)]

    assert "".join(pieces) + stream.flush() == output.decode(errors="replace")


@given(st.text(st.characters(exclude_characters=UNFINISHED, codec="utf-8"), max_size=20))
def test_no_incomplete_character_is_sent(text: str) -> None:
    stream = TextStream(TEXT, ())

    pieces = [stream.push((token,)) for token in tokens_of(text.encode())]

    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(bytes_of_text, outputs, st.integers(0, 24))
def test_a_resumed_stream_continues_where_the_first_one_stopped(prompt: bytes, output: bytes, at: int) -> None:
    """The first one may have stopped inside a character: then its text was not sent yet, and nothing else is."""
    tokens = tokens_of(output)
    first = TextStream(TEXT, tokens_of(prompt))
    for token in tokens[:at]:
        first.push((token,))

    resumed = TextStream(TEXT, tokens_of(prompt), generated=tokens[:at])

    for token in tokens[at:]:
        assert resumed.push((token,)) == first.push((token,))
    assert resumed.flush() == first.flush()


@given(st.text(max_size=40))
def test_encoding_and_decoding_give_the_text_back(text: str) -> None:
    assert TEXT.decode(TEXT.encode(text)) == text


def test_the_space_before_a_word_is_kept() -> None:
    """A space belongs to the word piece after it, and is dropped at the beginning of a text."""
    words = Tokenizer(models.WordLevel({"\u2581no": 0, "\u2581way": 1, "?": 2}, unk_token="?"))
    words.decoder = decoders.Metaspace()
    text = Text(PreTrainedTokenizerFast(tokenizer_object=words))
    stream = TextStream(text, prompt=(0,))

    assert [stream.push((token,)) for token in (1, 0, 2, 1)] == [" way", " no", "?", " way"]


def test_a_flushed_stream_has_nothing_left() -> None:
    stream = TextStream(TEXT, ())

    assert stream.push(tokens_of(b"a\xe2\x82")) == ""
    assert stream.flush() == "a" + UNFINISHED
    assert stream.flush() == ""


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="no tokenizer"):
        Text.load(tmp_path)
