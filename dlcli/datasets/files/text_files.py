"""Finds and reads a text for a language model, cuts it into splits and makes the vocabulary, without torch.

The text is one stream: first the part to train on, then the part to validate on, and last the part to test on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dlcli.datasets.files.sentence_files import read_text
from dlcli.datasets.storage.roots import data_roots, exists, find_under, missing
from dlcli.datasets.tokens.tokenizing import Tokenizer
from dlcli.errors import ConfigError, DataError, printable

SHAKESPEARE = ("tinyshakespeare/input.txt", "tinyshakespeare.txt")
FEWEST = 2  # characters of a split: one to begin with, one to predict
Part = int | float


def peek_text(
    path: str | None,
    *,
    root: str | None = None,
    tokenizer: str,
    num_tokens: int | None = None,
    val_size: Part,
    test_size: Part,
) -> dict[str, int]:
    """num_tokens, the size of the vocabulary of the training part."""
    train, _, _ = cut(read_characters(locate(path, root)), val_size, test_size)
    return {"num_tokens": len(fit_tokenizer(train, tokenizer, num_tokens))}


@lru_cache(maxsize=2)  # the data are peeked at and read in one process; byte pairs take seconds to learn
def fit_tokenizer(text: str, kind: str, size: int | None) -> Tokenizer:
    """Raises ConfigError for words: they leave out the spaces, so that bits per character could not be computed."""
    if kind == "words":
        message = "dataset.tokenizer=words: a stream of words is not its text, whose spaces and line ends are left out"
        raise ConfigError(message, hint="dataset.tokenizer=characters or bpe")
    return Tokenizer.train(lines_of(text), kind=kind, size=size)


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text. Byte pairs never reach over the end of a line."""
    return [token for ids in tokenizer.encode_batch(lines_of(text)) for token in ids]


def lines_of(text: str) -> list[str]:
    """The lines with their ends: joined, they are the text again."""
    return text.splitlines(keepends=True)


def num_characters(tokenizer: Tokenizer) -> list[int]:
    """The number of characters that each token covers: over a text's tokens, they add up to the text's length.

    A byte pair may end within a character: it counts the characters that begin in it.
    """
    specials = [0, 1, 0, 0]  # <unk> covers one character
    if tokenizer.kind == "bpe":
        counts = [sum(begins_character(byte) for byte in spelt) for spelt in byte_spellings(tokenizer.pieces)]
    else:
        counts = [len(piece) for piece in tokenizer.pieces]
    return specials + counts


def begins_character(byte: int) -> bool:
    """Whether a character begins at this byte: in UTF-8 the bytes 10xxxxxx continue one."""
    return byte & 0b1100_0000 != 0b1000_0000


def byte_spellings(pieces: Sequence[str]) -> list[bytes]:
    """Maps the printable characters in which GPT-2 writes byte pairs to their bytes.

    Printable bytes of Latin-1 mean themselves; the other 68 are written as the characters from 256 on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return [bytes(byte_of[sign] for sign in piece) for piece in pieces]


# ---------------------------------------------------------------------------------------------------- files and splits


def find_shakespeare(root: str | None) -> Path:
    roots = data_roots(root)
    places = [name + end for name in SHAKESPEARE for end in (".gz", "")]
    found = find_under(roots, places)
    if found is None:
        raise missing(
            "Tiny Shakespeare", places[0], roots, name="shakespeare", reason="dlcli has no address to fetch it from"
        )
    return found


def locate(path: str | None, root: str | None) -> Path:
    """`path` as it is, or under the first data root that has it. Raises DataError if it is not found."""
    if path is None:
        raise DataError(
            "dataset.path is not given: dlcli does not know which text to read.", hint="dataset.path=book.txt"
        )
    given = Path(path).expanduser()
    roots = data_roots(root)
    found = given if exists(given) else find_under(roots, [path])
    if found is None:
        looked = ", ".join(str(folder.absolute()) for folder in (Path(), *roots))
        message = f"dataset.path={printable(path)} was not found in {looked}."
        raise DataError(message, hint="Give a text in UTF-8, gzipped or not.")
    if not found.is_file():
        raise DataError(f"dataset.path={printable(path)} is not a file.", hint="Give a text in UTF-8, gzipped or not.")
    return found


def read_characters(path: Path) -> str:
    """The text with Unix line ends. Raises DataError if it is empty."""
    text = read_text(path).replace("\r\n", "\n")
    if not text:
        raise DataError(f"{path} is empty.", hint="Give a text in UTF-8, gzipped or not.")
    return text


def cut(text: str, val_size: Part, test_size: Part) -> tuple[str, str, str]:
    """(train, val, test), in the order of the text. Sizes: characters, or shares of the text.

    Raises DataError if a part would be empty.
    """
    val, test = (size if isinstance(size, int) else round(size * len(text)) for size in (val_size, test_size))
    train = len(text) - val - test
    if min(train, val, test) < FEWEST:
        message = f"the text of {len(text):,} characters would be cut into {train:,} to train on, {val:,} and {test:,}."
        raise DataError(message, hint="Give a longer text, or dataset.val_size=0.1 dataset.test_size=0.1")
    return text[:train], text[train : train + val], text[train + val :]
