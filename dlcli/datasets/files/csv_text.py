"""Tables as text: CSV, TSV and the like, plain or .gz. Errors name the line.

Imports neither torch nor numpy. A table of 1,000,000 x 20 cells takes as much memory as its file: the cells stay text,
joined, until a column is asked for.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from dlcli.datasets.files.number_forms import is_number_in_some_form
from dlcli.errors import DataError, first_of, printable

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
GUESSED = ("comma", "semicolon", "tab", "pipe")  # not a space: too many texts hold one
MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))  # whatever their case
UTF8 = "Save the table as UTF-8 text."
LOOKED_AT = 200  # lines, to guess the delimiter and whether there is a header
CHUNK = 50_000  # rows that are held as Python objects at once


@dataclass(frozen=True)
class TextTable:
    """names: of the columns, all different. chunks: by column, its cells joined by NUL, some rows each.

    has_header: whether the names come from the file; if not, they are `column 1`, `column 2`, ...
    delimiter: what divides the cells. places: for each file, in the order of rows, the line at which each row ends.
    """

    source: str
    names: tuple[str, ...]
    chunks: dict[str, list[str]]
    num_rows: int
    has_header: bool = True
    delimiter: str = ","
    places: tuple[tuple[str, array[int]], ...] = ()

    def place(self, row: int) -> str:
        """The place of a row (counted from 0): `line 7`, or `test.csv, line 7` if there are several files."""
        for source, lines in self.places:
            if row < len(lines):
                return at(Path(source).name, lines[row]) if len(self.places) > 1 else f"line {lines[row]:,}"
            row -= len(lines)
        return f"row {row + 1:,}"

    def cells(self, name: str) -> list[str]:
        """The column's N cells, without spaces around them."""
        return [cell for chunk in self.chunks[name] for cell in chunk.split("\0")]


def read_table(
    path: Path,
    *,
    delimiter: str = "auto",
    header: str | bool = "auto",
    names: Sequence[str] = (),
    comment: str | None = None,
) -> TextTable:
    """The table in a file. delimiter: one of DELIMITERS, by its word. names: of the columns, if there is no header.

    comment: lines that begin with it are skipped. Raises DataError, with the line, for what cannot be read.
    """
    try:
        with open_text(path) as file:
            return parse_table(file, str(path), delimiter=delimiter, header=header, names=names, comment=comment)
    except (EOFError, zlib.error, OSError) as error:
        said = getattr(error, "strerror", None) or error
        hint = "Replace it with an intact copy that you may read."
        raise DataError(f"{printable(path)} cannot be read: {said}.", hint=hint) from error


def open_text(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def parse_table(
    file: Iterable[str],
    source: str,
    *,
    delimiter: str = "auto",
    header: str | bool = "auto",
    names: Sequence[str] = (),
    comment: str | None = None,
) -> TextTable:
    """The same for lines, which must have kept their ends."""
    lines = file if comment is None else (("\n" if line.startswith(comment) else line) for line in file)
    reader = None
    try:
        head = list(islice(lines := iter(lines), LOOKED_AT))
        separator = guess_delimiter(head) if delimiter == "auto" else DELIMITERS[delimiter]
        has_header = looks_like_header(sample_rows(head, separator)) if header == "auto" else header is True
        reader = csv.reader(chain(head, lines), delimiter=separator, skipinitialspace=True, strict=True)
        return _gathered(reader, source, bool(has_header), names, separator)
    except csv.Error as error:
        line = reader.line_num if reader else 1
        quote = "Look for a quotation mark too many, or one that is never closed."
        hint = quote if "NUL" not in str(error) else UTF8
        raise DataError(f"{at(source, line)}: {error}.", hint=hint) from error
    except UnicodeDecodeError as error:
        message = f"{printable(source)} is not UTF-8 text: byte {error.object[error.start]:#04x} {error.reason}"
        raise DataError(f"{message}.", hint="If a spreadsheet wrote it: iconv -f CP1252 -t UTF-8 FILE > NEW") from error


def at(source: str, line: int) -> str:
    return f"{printable(source)}, line {line:,}"


def guess_delimiter(head: Sequence[str]) -> str:
    """The delimiter that cuts the first lines into the most rows of equal width; a comma if none does."""
    best, best_width = ",", 1
    for separator in map(DELIMITERS.__getitem__, GUESSED):
        widths = [len(row) for row in sample_rows(head, separator)]
        if widths and widths.count(widths[0]) >= 0.9 * len(widths) and widths[0] > best_width:
            best, best_width = separator, widths[0]
    return ";" if best == "," and has_decimal_commas(head) else best


def has_decimal_commas(head: Sequence[str]) -> bool:
    """Whether semicolons cut the first lines into rows of equal width, and every comma is then part of a number."""
    rows = sample_rows(head, ";")
    is_equal = len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    return is_equal and all(is_number_in_some_form(cell.strip()) for row in rows for cell in row if "," in cell)


def sample_rows(head: Sequence[str], separator: str) -> list[list[str]]:
    """The complete rows of the first lines."""
    rows = [row for row in csv.reader(head, delimiter=separator, skipinitialspace=True) if row]
    return rows[:-1] if len(head) == LOOKED_AT else rows  # the last one may continue


def looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is a header: it has neither a number nor `?`, but a column below has numbers; or it has
    words that occur nowhere below in their columns.
    """
    if len(rows) < 2:
        return True
    first, rest = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if any(cell and (is_number_in_some_form(cell) or is_missing(cell)) for cell in map(str.strip, first)):
        return False
    columns = [{row[i].strip() for row in rest} for i in range(len(first))]
    present = [{cell for cell in column if not is_missing(cell)} for column in columns]
    if any(cells and all(map(is_number_in_some_form, cells)) for cells in present):
        return True
    return len({*first}) == len(first) and all(c.strip() not in cells for c, cells in zip(first, columns, strict=True))


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _gathered(
    reader: Iterator[list[str]], source: str, has_header: bool, names: Sequence[str], delimiter: str
) -> TextTable:
    first = next((row for row in reader if row), None)  # a blank line is not a row
    if first is None:
        raise DataError(f"{printable(source)} holds no rows.", hint="Give a file with one row per line.")
    if names and len(names) != len(first):
        raise DataError(f"{at(source, 1)}: {len(first)} cells; {len(names)} are expected.", hint="dataset.delimiter=")
    found = _named(first, source) if has_header else tuple(names) or tuple(f"column {i + 1}" for i in range(len(first)))
    chunks: list[list[str]] = [[] for _ in found]
    lines = array("L")
    rows = reader if has_header else chain([first], reader)
    ragged: list[tuple[int, int]] = []
    while part := _even(rows, reader, len(found), lines, ragged):
        for column, cells in zip(chunks, zip(*part, strict=True), strict=True):
            column.append("\0".join(map(str.strip, cells)))
            if column[-1].count("\0") != len(part) - 1:
                raise DataError(f"{printable(source)} holds NUL characters.", hint=UTF8)
    if ragged:
        raise _told_of_ragged(ragged, len(found), source)
    if not lines:
        raise DataError(f"{printable(source)} holds a header and no rows.", hint="dataset.header=false if it is a row.")
    by_name = dict(zip(found, chunks, strict=True))
    return TextTable(source, found, by_name, len(lines), has_header, delimiter, ((source, lines),))


def _named(header: Sequence[str], source: str) -> tuple[str, ...]:
    names = tuple(cell.strip() or f"column {i + 1}" for i, cell in enumerate(header))
    for i, name in enumerate(names):
        if name in names[:i]:
            message = (
                f"{printable(source)}: columns {names.index(name) + 1} and {i + 1} are both called {printable(name)}"
            )
            raise DataError(f"{message}.", hint="Rename one; or dataset.header=false if the first line is a row.")
    return names


def _even(
    rows: Iterator[list[str]], reader: Iterator[list[str]], width: int, lines: array[int], ragged: list[tuple[int, int]]
) -> list[list[str]]:
    """The next rows of `width` cells; the lines at which they end are added to `lines`.

    Line and width of the other rows are added to `ragged`, so that one error reports all of them.
    """
    part: list[list[str]] = []
    for row in rows:
        if not row:
            continue
        line = getattr(reader, "line_num", 0)
        if len(row) != width:
            ragged.append((line, len(row)))
            continue
        part.append(row)
        lines.append(line)
        if len(part) == CHUNK:
            break
    return part


def _told_of_ragged(ragged: Sequence[tuple[int, int]], width: int, source: str) -> DataError:
    hint = "Put a text that holds the delimiter in quotation marks."
    if len(ragged) == 1:
        line, cells = ragged[0]
        message = f"{at(source, line)}: {cells} cell{'s'[: cells != 1]}, where the first row has {width}"
    else:
        first = first_of(f"line {line:,}: {cells}" for line, cells in ragged)
        message = f"{printable(source)}: {len(ragged):,} rows do not have {width} cells, as the first one has ({first})"
    return DataError(f"{message}.", hint=hint)


def joined(first: TextTable, second: TextTable) -> TextTable:
    """The rows of both, with the first's columns. Raises DataError if the second lacks one."""
    lacking = [name for name in first.names if name not in second.names]
    if lacking:
        message = f"{printable(second.source)} lacks the columns {listed(lacking)}; it has {listed(second.names)}"
        raise DataError(f"{message}.", hint=f"It must have those of {printable(first.source)}.")
    chunks = {name: first.chunks[name] + second.chunks[name] for name in first.names}
    num_rows, places = first.num_rows + second.num_rows, first.places + second.places
    return TextTable(first.source, first.names, chunks, num_rows, first.has_header, first.delimiter, places)


def listed(names: Iterable[str], *, most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name, limit=60) for name in names[:most]) + more
