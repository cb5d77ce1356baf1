"""A folder of recordings with a table of transcripts, listed without torch and without opening a recording.

    transcripts.csv     file,transcript[,split]    also .tsv, metadata.*, or the only table there
    metadata.csv        LJ001-0001|text[|text]     without a header, as in LJSpeech: the last column is used

Recordings are found in the folder and in its wavs/, clips/, audio/ and recordings/, with or without their ending.
Columns may have other usual names.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcli.datasets.files.image_tree import SPLITS as SPLIT_NAMES
from dlcli.datasets.storage.roots import data_roots, exists, find_under
from dlcli.errors import DataError, first_of, printable

TABLES = tuple(f"{stem}.{end}" for stem in ("transcripts", "metadata") for end in ("csv", "tsv"))
FILE_NAMES = ("file", "filename", "file_name", "path", "audio", "wav", "recording", "id")
TEXT_NAMES = ("transcript", "transcription", "text", "sentence")
FOLDERS = ("", "wavs", "clips", "audio", "recordings")
ENDINGS = ("", ".wav", ".flac", ".ogg", ".mp3")
SPLITS = {**SPLIT_NAMES, "dev": "val"}
TEST_FRACTION = 0.2
NAMED = 5  # in an error
BLANK, UNKNOWN = "", "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Line:
    """file: the recording, which may not exist; name: as in the table; text: the transcript, prepared for training."""

    file: Path
    name: str
    text: str

    @property
    def is_there(self) -> bool:
        return self.file.is_file()


def peek_speech(path: str | None, root: str | None = None, *, lowercase: bool = True) -> dict[str, int]:
    """num_tokens, the size of the alphabet with the blank. Raises DataError like the reader itself."""
    return {"num_tokens": len(alphabet_of(read_table(locate(path, root), lowercase=lowercase)))}


def locate(path: str | None, root: str | None) -> Path:
    """The table at `path`, or in the folder `path`: from here, or under a data root."""
    if path is None:
        raise DataError(
            "dataset.path is not given: dlcli does not know which recordings to read.",
            hint="dataset.path=PATH, a folder of recordings with a transcripts.csv of file,transcript.",
        )
    roots = data_roots(root)
    place = Path(path).expanduser()
    found = place if exists(place) else find_under(roots, [path])
    if found is None:
        looked = ", ".join(str(folder.absolute()) for folder in (Path(), *roots))
        raise DataError(
            f"dataset.path={printable(path)} is not in {looked}.",
            hint="Give a folder of recordings with a transcripts.csv, from here or under dataset.root or $DLCLI_DATA.",
        )
    return found if found.is_file() else find_table(found)


def find_table(folder: Path) -> Path:
    for name in TABLES:
        if (folder / name).is_file():
            return folder / name
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if len(tables) == 1:
        return tables[0]
    found = f"{len(tables)} tables ({', '.join(path.name for path in tables[:NAMED])})" if tables else "no table"
    raise DataError(
        f"{printable(folder)} has {found}: dlcli does not know where the transcripts are",
        hint="Put a transcripts.csv there, of file,transcript, or name the table: dataset.path=FOLDER/TABLE.csv",
    )


def read_table(table: Path, *, lowercase: bool) -> dict[str, list[Line]]:
    """Lines by split. Without a test split, a fifth becomes one, sorted by name and the same for every seed.

    Raises DataError if the file is not such a table. Absent recordings are reported with the damaged ones.
    """
    by_split: dict[str, list[Line]] = {"train": []}
    for name, text, split in parse(table):
        file = find_recording(table.parent, name) or table.parent / name
        by_split.setdefault(split, []).append(Line(file, name, cleaned(text, lowercase=lowercase)))
    return by_split if "test" in by_split else with_test(by_split)


def told_of_absent(table: Path, by_split: Mapping[str, Iterable[Line]]) -> str:
    """A sentence on the recordings that are not there, "" if all are."""
    absent = [line.name for lines in by_split.values() for line in lines if not line.is_there]
    if not absent:
        return ""
    places = f"in {printable(table.parent)} and its {', '.join(FOLDERS[1:])}"
    return (
        f"{printable(table)} names {say_some(absent)}, which {'is' if len(absent) == 1 else 'are'} not there ({places})"
    )


def parse(table: Path) -> list[tuple[str, str, str]]:
    """(file, text, split) of each line of the table."""
    rows = read_rows(table)
    if not rows:
        raise DataError(f"{printable(table)} is empty.", hint="Write a line for each recording: file,transcript")
    names = [name.strip().lower() for name in rows[0][1]]
    columns = [next((names.index(n) for n in wanted if n in names), None) for wanted in (FILE_NAMES, TEXT_NAMES)]
    file, text = columns
    if file is not None and text is not None:
        split, width, rows = names.index("split") if "split" in names else None, len(names), rows[1:]
    elif file is not None and len(names) < 3 and names[file] != "id":
        message = f"{printable(table)} has the columns {printable(', '.join(names))}, but none with the transcripts"
        raise DataError(
            message, hint=f"Name the column of transcripts {', '.join(TEXT_NAMES[:-1])} or {TEXT_NAMES[-1]}."
        )
    else:  # without a header
        file, text, split, width = 0, len(names) - 1 if is_piped(table) else 1, None, max(2, len(names))
    lines, wide, unknown = [], [], []
    for number, row in rows:
        if len(row) != width:
            wide.append(f"line {number}: {len(row)} columns, not {width}")
            continue
        part = "train" if split is None else SPLITS.get(row[split].strip().lower())
        if part is None:
            unknown.append(f"line {number}: {printable(row[split or 0])} is not a split")
            continue
        lines.append((row[file].strip(), row[text], part))
    if wrong := [*wide, *unknown]:
        hints = ["In a .csv, put a text that holds a comma in double quotes."] if wide else []
        hints += ["A split is train, val or test."] if unknown else []
        count = f": {len(wrong):,} lines are wrong: " if len(wrong) > 1 else ", "
        raise DataError(f"{printable(table)}{count}{first_of(wrong)}", hint=" ".join(hints))
    return lines


def read_rows(table: Path) -> list[tuple[int, list[str]]]:
    """(line number, columns) of the lines that are not empty."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            file.seek(0)
            delimiter = "\t" if "\t" in start else "|" if "|" in start else ","
            how: dict[str, Any] = {} if delimiter == "," else {"quoting": csv.QUOTE_NONE}
            reader = csv.reader(file, delimiter=delimiter, strict=True, **how)
            return [(reader.line_num, row) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        message = f"{printable(table)} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        raise DataError(message, hint="Save the table as UTF-8.") from error
    except (csv.Error, OSError) as error:
        raise DataError(
            f"{printable(table)} cannot be read: {printable(error)}.", hint="Write it as a .csv of file,transcript."
        ) from error


def is_piped(table: Path) -> bool:
    """A table as in LJSpeech: columns divided by |; the last is the text with its numbers written out."""
    with open(table, encoding="utf-8-sig") as file:
        start = file.readline()
    return "|" in start and "\t" not in start


def find_recording(folder: Path, name: str) -> Path | None:
    if not name:
        return None
    places = (folder / inner / f"{name}{ending}" for inner in FOLDERS for ending in ENDINGS)
    return next((path for path in places if path.is_file()), None)


def cleaned(text: str, *, lowercase: bool) -> str:
    """The text in composed characters (NFC), with single spaces, and in lower case if wanted."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.lower() if lowercase else text


def with_test(by_split: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """A fifth of the training lines, chosen by their names' digests, as a test split."""
    lines = sorted(by_split["train"], key=lambda line: hashlib.sha256(line.name.encode()).digest())
    num_test = min(max(1, round(TEST_FRACTION * len(lines))), len(lines) - 1) if len(lines) > 1 else 0
    chosen = set(map(id, lines[:num_test]))
    parts = {side: [line for line in by_split["train"] if (id(line) in chosen) == side] for side in (True, False)}
    return {**by_split, "train": parts[False], "test": parts[True]}


def alphabet_of(by_split: Mapping[str, Iterable[Line]]) -> list[str]:
    """The blank, then the characters of the training texts in order; if other splits have more, one for all of these.

    That one is never learned, so each of these characters counts as an error.
    """
    texts = {split: "".join(line.text for line in lines) for split, lines in by_split.items()}
    known = set(texts["train"])
    rest = {c for text in texts.values() for c in text} - known
    return [BLANK, *sorted(known), *([UNKNOWN] if rest and UNKNOWN not in known else [])]


def say_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return printable(", ".join(names[:NAMED]), limit=400) + (f" and {more} more" if more > 0 else "")
