"""Texts a user types, pipes or has in files: the meaning of each name in a command.

    find_sentences(["a great film", "reviews.tsv", "-"], column=None, classes=("neg", "pos"))

What has a / or ends like a text file, and exists, is read, a sentence a line; of a table (.csv, .tsv, or a first line
with tabs) the column of the sentences. A single word that ends like a text file was meant as one. Everything else is a
text itself, though a file be called so: a prompt `notes` means the word, `./notes` the file.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlcli.datasets.files.sentence_files import TEXT_NAMES, Column, Row, csv_rows, first_named, stripped, tab_rows
from dlcli.datasets.storage.roots import exists
from dlcli.errors import ConfigError, DataError, printable

ENDINGS = (".txt", ".text", ".md", ".tsv", ".csv", ".gz")
Answer = dict[str, Any]


def find_sentences(
    names: Sequence[str], *, column: Column = None, classes: Sequence[str] = ()
) -> Iterator[list[Answer]]:
    """Resolve each name to [{input}, ...], or {input, error} if it means nothing.

    column: of the sentences in a table, as in dataset.text_column; classes: the names of its labels.
    """
    check_stdin_once(names, "sentences.txt")
    for name in names:
        try:
            path = as_file(name)
            if name == "-":
                yield sentences_of(sys.stdin.buffer.read(), Path("stdin"), column, classes)
            elif path is not None:
                yield sentences_of(read_file(path), path, column, classes)
            elif not name.strip():
                raise DataError("is empty")
            else:
                yield [{"input": name}]
        except DataError as error:
            yield [{"input": name, "error": error.message}]


def check_stdin_once(names: Sequence[str], example: str) -> None:
    """Raise ConfigError where stdin is named more than once. example: a file that might be piped."""
    if names.count("-") > 1:
        raise ConfigError("- is given twice; stdin is read once", hint=f"dlcli predict - < {example}")


def read_whole(name: str) -> str:
    """Return the text that a name means: a file's or stdin's whole content, else the name itself. Raises DataError."""
    path = as_file(name)
    if name != "-" and path is None:
        return name
    return decoded(sys.stdin.buffer.read() if path is None else read_file(path))


def as_file(name: str) -> Path | None:
    """The file that is meant; None for a text. A folder is one where it is written as a path."""
    has_ending = name.lower().endswith(ENDINGS)
    if name == "-" or not ("/" in name or has_ending):
        return None
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~somebody who has no account here
        return None
    is_one_word = not any(letter.isspace() for letter in name)
    if exists(path):
        return path if path.is_file() or (is_one_word and "/" in name) else None
    return path if is_one_word and has_ending else None


def read_file(path: Path) -> bytes:
    """Decompressed where it is gzip. Raises DataError, a clause."""
    if path.is_dir():
        raise DataError(f"is a folder; name its files:  {printable(path)}/*.txt")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or printable(error)}") from error


def decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"line {line} is not UTF-8") from error


def sentences_of(content: bytes, path: Path, column: Column, classes: Sequence[str]) -> list[Answer]:
    """A sentence a line. Raises DataError where there is none, or a table has no column that must be theirs."""
    text = decoded(content)
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    is_csv, is_table = ending == ".csv", ending in (".csv", ".tsv")
    lines = csv_rows(path, text) if is_csv else tab_rows(text)
    rows = [row for row in lines if any(cell.strip() for cell in row[1])]
    if not rows:
        raise DataError("holds no sentence")
    # One column that no table's name announces has no header: a first line `review` is a text too.
    place = find_column(rows, column, classes) if is_table or len(rows[0][1]) > 1 else None
    if place is None and is_table:
        message = ", ".join(printable(cell, limit=30) for cell in rows[0][1])
        raise DataError(
            f"has {len(rows[0][1])} columns ({message}); the one of the sentences is not called {TEXT_NAMES[0]}"
        )
    if place is None:  # a tab, if there is one, is of a sentence
        return [{"input": line.strip()} for line in text.split("\n") if line.strip()]
    at, has_header = place
    found = [fields[at].strip() for _, fields in rows[has_header:] if at < len(fields)]
    if not any(found):
        raise DataError("holds no sentence")
    return [{"input": sentence} for sentence in found if sentence]


def find_column(rows: Sequence[Row], column: Column, classes: Sequence[str]) -> tuple[int, bool] | None:
    """Find the column of the sentences, and whether the first line is a header; None if that is unclear.

    Decided by the run's setting, by usual names, else the other of two columns if the classes identify the labels.
    """
    header = stripped(rows[0][1])
    named = first_named(header, TEXT_NAMES)
    if isinstance(column, str) and column in header:
        return header.index(column), True
    if named is not None and len(header[named].split()) == 1 and (len(header) > 1 or len(rows) > 1):
        return named, True
    if len(header) == 1:
        return 0, False
    if str(column).isdecimal() and 1 <= int(str(column)) <= len(header):
        return int(str(column)) - 1, False
    behind = rows[1:] or rows
    labels = [at for at in range(len(header)) if all(at < len(f) and f[at].strip() in classes for _, f in behind)]
    if len(header) != 2 or len(labels) != 1:
        return None
    return 1 - labels[0], header[labels[0]] not in classes
