"""Reads and splits the user's own files of labelled sentences, without torch.

    great fun<TAB>positive        .tsv, .txt: a tab between; quotes have no special meaning, as in GLUE
    "great, fun",positive         .csv: fields with commas or line breaks are in quotes

Either may be gzipped. A header is recognised by its names, or by a label that occurs nowhere else. With more than two
columns and other names, `text_column` and `label_column` say which: names of the header, or numbers from 1.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dlcli.datasets.storage.roots import data_roots, exists, find_under
from dlcli.datasets.tokens.pretrained_tokenizer import PretrainedTokenizer
from dlcli.datasets.tokens.tokenizing import Tokenizer
from dlcli.errors import ConfigError, DataError, first_of, nearest, printable

TEST_FRACTION = 0.2
TEXT_NAMES = ("sentence", "text", "review", "phrase", "comment", "message", "tweet", "content", "body", "document")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target", "polarity", "topic")
SIGNS = re.compile(r"[\W_]+")
Row = tuple[int, list[str]]  # number of its line, from 1, and its fields
Column = int | str | None


class Sentence(NamedTuple):
    text: str  # without blanks at its ends
    label: str
    line: int


@dataclass
class Notes:
    """Defects that were found and handled: kind -> how often, and the first place."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, place: str) -> None:
        self.counts[what] += 1
        self.places.setdefault(what, place)

    def sentences(self) -> tuple[str, ...]:
        """`repeated lines left out: 366 (first: train.tsv, line 40)`."""
        return tuple(f"{what}: {count:,} (first: {self.places[what]})" for what, count in self.counts.items())


@dataclass(frozen=True)
class SentenceSplits:
    """classes: sorted, numbers by value; splits: train, test, and val if it was given."""

    classes: tuple[str, ...]
    splits: dict[str, list[Sentence]]
    notes: Notes


def peek_sentences(
    path: str | None,
    *,
    tokenizer: str,
    tokenizer_file: str | None = None,
    num_tokens: int | None = None,
    **files: Column,
) -> dict[str, int]:
    """num_classes, the number of labels, and num_tokens, the size of the vocabulary of the training split."""
    found = read_splits(path, **files)  # type: ignore[arg-type]
    vocabulary = fit_tokenizer(found.splits["train"], tokenizer, num_tokens, tokenizer_file)
    return {"num_classes": len(found.classes), "num_tokens": len(vocabulary)}


def fit_tokenizer(
    sentences: Sequence[Sentence], kind: str, num_tokens: int | None, tokenizer_file: str | None = None
) -> Tokenizer | PretrainedTokenizer:
    """The tokenizer: read from the file if there is one, else trained on the sentences."""
    if tokenizer_file is not None:
        return PretrainedTokenizer.read(Path(tokenizer_file), num_tokens)
    return Tokenizer.train((sentence.text for sentence in sentences), kind=kind, size=num_tokens)


def read_splits(
    path: str | None,
    *,
    root: str | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
    text_column: Column = None,
    label_column: Column = None,
) -> SentenceSplits:
    """The file at `path` to train on, and the others to validate and test on.

    Without a test_path a fifth of every class is the test split, chosen by the text alone: the order of the lines does
    not matter. Without a val_path the run splits one off by its seed.
    """
    notes = Notes()
    files = {"train": locate(path, root, "dataset.path")}
    for split, other in (("val", val_path), ("test", test_path)):
        if other is not None:
            files[split] = locate(other, root, f"dataset.{split}_path")
    rows = {split: read_rows(file, notes) for split, file in files.items()}
    columns = find_columns(files["train"], rows["train"], text_column, label_column)
    splits = {
        split: read_sentences(file, rows[split], columns.within(rows[split]), notes) for split, file in files.items()
    }
    classes = find_classes(files["train"], splits["train"])
    check_labels(files, splits, classes)
    return tidy(classes, splits, files["train"].name, notes)


def tidy(classes: tuple[str, ...], splits: dict[str, list[Sentence]], name: str, notes: Notes) -> SentenceSplits:
    """Adds a test split, and drops repeats and held-out sentences from training. name: of the training file."""
    train = without_repeats(splits["train"], name, notes)
    if "test" not in splits:
        train, test = split_by_text(train)
        splits = {**splits, "test": test}
    held_out = {key_of(s.text) for split in ("val", "test") for s in splits.get(split, ())}
    kept = []
    for sentence in train:
        if key_of(sentence.text) in held_out:
            notes.add("training sentences that are held out too, left out", f"{name}, line {sentence.line}")
        else:
            kept.append(sentence)
    if not kept:
        raise DataError(f"{name}: every training sentence is held out too.", hint="Give other files to train on.")
    return SentenceSplits(classes, {**splits, "train": kept}, notes)


def without_repeats(sentences: Sequence[Sentence], name: str, notes: Notes) -> list[Sentence]:
    """Each pair of text and label once; a text with two labels is kept with both, and noted."""
    labels_of: dict[str, set[str]] = {}
    kept = []
    for sentence in sentences:
        known = labels_of.setdefault(sentence.text, set())
        if sentence.label in known:
            notes.add("repeated lines left out", f"{name}, line {sentence.line}")
            continue
        if known:
            notes.add("sentences with another label before, kept with both", f"{name}, line {sentence.line}")
        known.add(sentence.label)
        kept.append(sentence)
    return kept


def key_of(text: str) -> str:
    """Two sentences are the same if their keys are: their letters and digits. Texts without any are their own key."""
    return SIGNS.sub("", text.casefold()) or text


def split_by_text(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """(train, test): test is the fifth of every class with the smallest hashes; each class keeps one to train on."""
    by_class: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        by_class.setdefault(sentence.label, []).append(sentence)
    held_out: set[int] = set()
    for members in by_class.values():
        count = min(max(round(TEST_FRACTION * len(members)), 1), len(members) - 1)
        ordered = sorted(members, key=lambda s: (hashlib.sha256(key_of(s.text).encode()).digest(), s.line))
        held_out |= {s.line for s in ordered[:count]}
    train = [s for s in sentences if s.line not in held_out]
    return train, [s for s in sentences if s.line in held_out]


def find_classes(path: Path, sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """The different labels: numbers by value, words in alphabetical order."""
    found = {sentence.label for sentence in sentences}
    if len(found) < 2:
        message = f"{path}: every sentence has the label {printable(next(iter(found)))}; there must be two or more."
        raise DataError(message, hint="Name the column of labels: dataset.label_column=NAME")
    if len(found) > max(20, len(sentences) / 2):
        message = f"{path}: {len(found):,} different labels in {len(sentences):,} lines: these are not labels."
        raise DataError(
            message, hint="Name the column of labels: dataset.label_column=NAME  (of the header, or a number from 1)"
        )
    is_numeric = all(label.lstrip("-").isdecimal() for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if is_numeric else None))


def check_labels(files: dict[str, Path], splits: dict[str, list[Sentence]], classes: tuple[str, ...]) -> None:
    """Raise DataError for a label that no training sentence has."""
    for split, sentences in splits.items():
        for sentence in sentences:
            if sentence.label not in classes:
                message = f"{files[split]}, line {sentence.line}: no training sentence has the label "
                known = ", ".join(map(printable, classes[:10]))
                raise DataError(f"{message}{printable(sentence.label)}.", hint=f"Known labels: {known}")


# --------------------------------------------------------------------------------------------------------- one file


def locate(path: str | None, root: str | None, setting: str) -> Path:
    """`path` as it is, or under the first data root that has it. Raises DataError if it is not found."""
    if path is None:
        raise DataError(
            f"{setting} is not given: dlcli does not know which file of sentences to read.",
            hint=f"{setting}=reviews.tsv",
        )
    given = Path(path).expanduser()
    roots = data_roots(root)
    found = given if exists(given) else find_under(roots, [path])
    if found is None or not found.is_file():
        looked = ", ".join(str(folder.absolute()) for folder in (Path(), *roots))
        what = "is not a file" if found else f"was not found in {looked}"
        raise DataError(f"{setting}={printable(path)} {what}.", hint="Give a .tsv or .csv of sentences and labels.")
    return found


@dataclass(frozen=True)
class Columns:
    """The columns of the sentence and its label. header: the first line's names, None if it has none."""

    text: int
    label: int
    header: tuple[str, ...] | None

    def within(self, rows: Sequence[Row]) -> Columns:
        """The same columns of another file: by name if its first line has these names, else by place."""
        if self.header is None:
            return self
        first = stripped(rows[0][1])
        text, label = self.header[self.text], self.header[self.label]
        if text in first and label in first:
            return Columns(first.index(text), first.index(label), first)
        return replace(self, header=None)


def read_sentences(path: Path, rows: Sequence[Row], columns: Columns, notes: Notes) -> list[Sentence]:
    """The sentences of one file. Lines without a label or without text are left out and noted."""
    width = len(rows[0][1])
    wide = [(line, f"{len(fields)} columns instead of {width}") for line, fields in rows if len(fields) > width]
    if wide:
        raise wrong_lines(
            path, wide, hint="Remove tabs within a sentence, or use a .csv, which may hold any character within quotes."
        )
    found = []
    for line, fields in rows[columns.header is not None :]:
        place = f"{path.name}, line {line}"
        text, label = (fields[at].strip() if at < len(fields) else "" for at in (columns.text, columns.label))
        if not text:
            notes.add("lines without a sentence left out", place)
        elif not label:
            notes.add("lines without a label left out", place)
        else:
            found.append(Sentence(text, label, line))
    if not found:
        raise DataError(f"{path}: no line has a sentence and a label.", hint="Expected: SENTENCE<TAB>LABEL")
    return found


def wrong_lines(path: Path, wrong: Sequence[tuple[int, str]], *, hint: str) -> DataError:
    """One error for all the lines of a file that cannot be read. wrong: (line, clause), at least one."""
    if len(wrong) == 1:
        return DataError(f"{path}, line {wrong[0][0]}: {wrong[0][1]}.", hint=hint)
    message = first_of(f"line {line}: {clause}" for line, clause in wrong)
    return DataError(f"{path}: {len(wrong):,} lines cannot be read: {message}.", hint=hint)


def read_rows(path: Path, notes: Notes) -> list[Row]:
    """The lines that are not blank, cut into fields; blank ones are noted, except at the end.

    Raises DataError, with the line, for what cannot be read.
    """
    text = read_text(path)
    is_csv = path.name.lower().removesuffix(".gz").endswith(".csv")
    rows, blank = [], []
    for line, fields in csv_rows(path, text) if is_csv else tab_rows(text):
        if any(value.strip() for value in fields):
            rows.append((line, fields))
        else:
            blank.append(line)
    for line in blank:
        if rows and line < rows[-1][0]:
            notes.add("blank lines left out", f"{path.name}, line {line}")
    if not rows:
        raise DataError(f"{path} is empty.", hint="Write lines of SENTENCE<TAB>LABEL.")
    if len(rows[0][1]) < 2:
        message = f"{path}, line {rows[0][0]}: one column; there must be a sentence and a label."
        raise DataError(message, hint="Put a comma between them in a .csv, a tab in other files.")
    return rows


def read_text(path: Path) -> str:
    """UTF-8, decompressed where the file is gzip, without a byte order mark."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {printable(error)}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"{path}, line {line}: not UTF-8 (byte {content[error.start]:#04x})."
        raise DataError(message, hint=f"iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}") from error


def tab_rows(text: str) -> Iterator[Row]:
    # str.splitlines would also cut at U+2028, form feeds and the like, which sentences may contain.
    for line, content in enumerate(text.split("\n"), 1):
        yield line, content.removesuffix("\r").split("\t")


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if "," in first or ";" not in first else ";")
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not CSV: {error}.", hint="Close every quote that is opened.") from error


def find_columns(path: Path, rows: Sequence[Row], text_column: Column = None, label_column: Column = None) -> Columns:
    """The columns as given, else by usual names; else, of two columns, the label is the one with fewer values."""
    header = stripped(rows[0][1])
    text, label = (
        first_named(header, names) if name is None else place_of(path, header, setting, name)
        for setting, name, names in (
            ("text_column", text_column, TEXT_NAMES),
            ("label_column", label_column, LABEL_NAMES),
        )
    )
    is_named = label is not None and label_column is None
    is_named |= any(name is not None and not str(name).isdecimal() for name in (text_column, label_column))
    if len(header) == 2:
        if text is None and label is None:
            distinct = [len({fields[at] for _, fields in rows if at < len(fields)}) for at in (0, 1)]
            label = 0 if distinct[0] < distinct[1] else 1
        if text is None and label is not None:
            text = 1 - label
        elif label is None and text is not None:
            label = 1 - text
    if text is None or label is None or text == label:
        message = f"{path} has {len(header)} columns: {', '.join(printable(name, limit=30) for name in header)}"
        raise DataError(message, hint="dataset.text_column=NAME dataset.label_column=NAME  (or numbers from 1)")
    return Columns(text, label, header if is_named or label_is_unique(rows, label) else None)


def stripped(fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(value.strip() for value in fields)


def place_of(path: Path, header: Sequence[str], setting: str, name: int | str) -> int:
    if str(name).isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    if name in header:
        return header.index(str(name))
    what, number = f"dataset.{setting}={printable(name)}", "a number from 1" + f" to {len(header)}" * (len(header) > 1)
    if str(name).isdecimal():  # the first line may be a sentence: it is not shown
        message = f"{what}: {path} has {len(header)} column{'' if len(header) == 1 else 's'}"
        raise ConfigError(message, hint=f"Give {number}, or a name of the header.")
    better = nearest(str(name), header)
    shown = ", ".join(printable(column, limit=30) for column in header)
    hint = f"dataset.{setting}={better}" if better else f"Give a name of the header, or {number}."
    raise ConfigError(f"{what}: {path} has the columns {shown}", hint=hint)


def first_named(header: Sequence[str], names: Sequence[str]) -> int | None:
    lowered = [name.lower() for name in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def label_is_unique(rows: Sequence[Row], label_at: int) -> bool:
    """Whether the first line is a header: its label is on no other line, while other lines share theirs."""
    first, *rest = (fields[label_at].strip() if label_at < len(fields) else "" for _, fields in rows)
    return len(set(rest)) < len(rest) and first not in rest
