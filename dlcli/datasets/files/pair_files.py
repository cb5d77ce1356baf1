"""Sentences and their translations: line-aligned files, or one file of SOURCE<TAB>TARGET lines. Without torch.

    pairs.tsv                  a tab between the two; quotes have no special meaning
    train.en and train.de      line n of one is line n of the other

Any of them may be gzipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dlcli.datasets.files.sentence_files import Notes, key_of, read_text, wrong_lines
from dlcli.datasets.storage.roots import data_roots, exists, find_under, missing
from dlcli.datasets.tokens.tokenizing import Tokenizer
from dlcli.errors import DataError, printable

TEST_FRACTION = 0.1
MULTI30K = {"train": "train", "val": "val", "test": "test_2016_flickr"}
Pair = tuple[str, str]  # source and target, without blanks at their ends


def peek_pairs(path: str | None, *, num_tokens: int | None = None, **files: str | None) -> dict[str, int]:
    """num_tokens, the size of the vocabulary that both languages share."""
    return {"num_tokens": len(fit_tokenizer(read_splits(path, Notes(), **files)["train"], num_tokens))}


def fit_tokenizer(pairs: Sequence[Pair], num_tokens: int | None) -> Tokenizer:
    """A tokenizer of byte pairs, trained on both languages together."""
    return _fit(tuple(pairs), num_tokens)


@lru_cache(maxsize=1)  # the data are peeked at and read in one process
def _fit(pairs: tuple[Pair, ...], num_tokens: int | None) -> Tokenizer:
    return Tokenizer.train((text for pair in pairs for text in pair), kind="bpe", size=num_tokens)


def read_splits(
    path: str | None,
    notes: Notes,
    *,
    root: str | None = None,
    target_path: str | None = None,
    test_path: str | None = None,
    test_target_path: str | None = None,
) -> dict[str, list[Pair]]:
    """train and test. Without a test_path a tenth is the test split, chosen by the source alone, whatever the order."""
    train = read_pairs(locate(path, root, "dataset.path"), _other(target_path, root, "dataset.target_path"), notes)
    if test_path is not None:
        test_file = locate(test_path, root, "dataset.test_path")
        return {
            "train": train,
            "test": read_pairs(test_file, _other(test_target_path, root, "dataset.test_target_path"), notes),
        }
    ordered = sorted({key_of(source) for source, _ in train}, key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(ordered) < 2:
        message = f"{path}: {len(ordered)} different sentences; there must be one to train and one to test on."
        raise DataError(message, hint="dataset.test_path=test.tsv")
    held_out = set(ordered[: max(1, round(TEST_FRACTION * len(ordered)))])
    return {
        "train": [pair for pair in train if key_of(pair[0]) not in held_out],
        "test": [pair for pair in train if key_of(pair[0]) in held_out],
    }


def read_multi30k(root: str | None, source: str, target: str, notes: Notes) -> dict[str, list[Pair]]:
    """train, val and test 2016 (flickr), from files like train.en.gz in multi30k/. source, target: en or de, say."""
    roots = data_roots(root)
    splits = {}
    for split, stem in MULTI30K.items():
        files = []
        for language in (source, target):
            places = [f"{folder}{stem}.{language}{end}" for folder in ("multi30k/", "") for end in (".gz", "")]
            found = find_under(roots, places)
            if found is None:
                raise missing(
                    "Multi30k", places[0], roots, name="multi30k", reason="dlcli has no address to fetch it from"
                )
            files.append(found)
        splits[split] = read_pairs(files[0], files[1], notes)
    return splits


def _other(path: str | None, root: str | None, setting: str) -> Path | None:
    return None if path is None else locate(path, root, setting)


def locate(path: str | None, root: str | None, setting: str) -> Path:
    """`path` as it is, or under the first data root that has it. Raises DataError if it is not found."""
    hint = f"{setting}=pairs.tsv  or  dataset.path=train.en dataset.target_path=train.de"
    if path is None:
        raise DataError(f"{setting} is not given: dlcli does not know which sentences to read.", hint=hint)
    given, roots = Path(path).expanduser(), data_roots(root)
    found = given if exists(given) else find_under(roots, [path])
    if found is None or not found.is_file():
        looked = ", ".join(str(folder.absolute()) for folder in (Path(), *roots))
        what = "is not a file" if found else f"was not found in {looked}"
        raise DataError(f"{setting}={printable(path)} {what}.", hint=hint)
    return found


def read_pairs(path: Path, target_path: Path | None, notes: Notes) -> list[Pair]:
    """The pairs of one file or two; those with an empty side are left out and noted. DataError if none is left."""
    lines = tab_lines(path) if target_path is None else aligned_lines(path, target_path)
    pairs = []
    for number, (source, target) in lines:
        if source.strip() and target.strip():
            pairs.append((source.strip(), target.strip()))
        else:
            notes.add("pairs with an empty side left out", f"{path.name}, line {number}")
    if not pairs:
        raise DataError(f"{path} holds no pair of sentences.", hint="Write lines of SOURCE<TAB>TARGET.")
    return pairs


def tab_lines(path: Path) -> list[tuple[int, Pair]]:
    """The lines of a file of pairs. Raises one DataError for all lines that are not pairs."""
    found, wrong = [], []
    for number, line in enumerate(lines_of(path), 1):
        fields = line.split("\t")
        if not line.strip():
            found.append((number, ("", "")))
        elif len(fields) == 2:
            found.append((number, (fields[0], fields[1])))
        else:
            wrong.append((number, f"{len(fields)} column{'s' * (len(fields) > 1)} instead of 2"))
    if wrong:
        raise wrong_lines(
            path,
            wrong,
            hint="Write SOURCE<TAB>TARGET on each line; for two files: dataset.target_path=train.de",
        )
    return found


def aligned_lines(path: Path, target_path: Path) -> list[tuple[int, Pair]]:
    """Raises DataError if one file has more lines: then it is unknown which lines belong together."""
    sources, targets = lines_of(path), lines_of(target_path)
    if len(sources) != len(targets):
        message = f"{path} has {len(sources):,} lines, {target_path} has {len(targets):,}: they are not line-aligned."
        raise DataError(
            message, hint="Line n of one must be the translation of line n of the other; empty lines count."
        )
    return list(enumerate(zip(sources, targets, strict=True), 1))


def lines_of(path: Path) -> list[str]:
    """Lines without their ends. str.splitlines would also cut at U+2028 and form feeds, which sentences may contain."""
    lines = read_text(path).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
