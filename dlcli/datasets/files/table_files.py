"""Reads tables and makes them ready for a network, by split; also the peek at them. All without torch.

Test and validation rows are chosen by their place in the file alone, the same ones for every seed. So the columns'
statistics (of the training rows) and the number of features are facts of the data set, not of a run.

Letters: N rows, F features.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dlcli.datasets.files.columns import MOSTLY, Category, Column, Number, as_plain, best_numbers, fit_column
from dlcli.datasets.files.csv_text import TextTable, is_missing, joined, listed, read_table
from dlcli.datasets.files.number_forms import POINT, as_point, is_number, is_number_in_some_form
from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.errors import ConfigError, DataError, EnvironmentFault, nearest, printable

TEST_FRACTION = 0.2
MOST_CATEGORIES = 100  # features of one column of words
KINDS_NAMED = 4  # columns of each kind, in a note
BAD_NAMED = 3  # cells, in a sentence
MANY_NUMBERS = 20  # with more different fractions, a target is not one of classes
ADULT = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
DIABETES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


@dataclass(frozen=True)
class Target:
    """The target. values: (N,) int64, or float64 in the unit of the file; classes: () for a number.

    form: how the file writes the numbers.
    """

    name: str
    values: np.ndarray
    classes: tuple[str, ...]
    form: str = POINT


@dataclass(frozen=True)
class Prepared:
    """features: (N, F) float32 by split (train, val, test); targets: (N,) by split; see Data for the rest."""

    features: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    classes: tuple[str, ...]
    fitted: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def facts(self) -> dict[str, int]:
        return {"num_classes": max(1, len(self.classes)), "num_features": self.features["train"].shape[1]}


# ------------------------------------------------------------------------------------------------------------ the files


def peek_csv(**settings: Any) -> dict[str, int]:
    """num_classes (1 if a number is predicted) and num_features. The table it reads is kept for the reader."""
    return prepare_csv(**settings).facts


def peek_adult(root: str | None, *, val_size: float) -> dict[str, int]:
    return prepare_adult(root, val_size=val_size).facts


def prepare_csv(
    root: str | None,
    path: str | None,
    *,
    target: str | int | None = None,
    target_kind: str | None = None,
    test_path: str | None = None,
    val_size: float = 0.1,
    delimiter: str = "auto",
    header: str | bool = "auto",
    categories: Sequence[str] = (),
    drop_columns: Sequence[str] = (),
) -> Prepared:
    """The user's own file. target: its name, or its number from 1 on; None: the last column. target_kind: class or
    number. test_path: the test rows; None: a fixed fifth of `path`. categories: columns that do not hold numbers.
    """
    paths = [locate(root, path), *([locate(root, test_path)] if test_path else [])]
    stamps = tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    return _prepare_csv(
        stamps, target, target_kind or "class", val_size, delimiter, header, tuple(categories), tuple(drop_columns)
    )


@lru_cache(maxsize=1)  # peek and reader ask one after the other
def _prepare_csv(
    stamps: tuple[tuple[str, int, int], ...],
    target: str | int | None,
    target_kind: str,
    val_size: float,
    delimiter: str,
    header: str | bool,
    categories: tuple[str, ...],
    drop_columns: tuple[str, ...],
) -> Prepared:
    tables = [read_table(Path(path), delimiter=delimiter, header=header) for path, _, _ in stamps]
    table = joined(*tables) if len(tables) == 2 else tables[0]
    prepared = prepare(
        table,
        target=column_of(table, target, "dataset.target"),
        target_kind=target_kind,
        num_own_test=tables[1].num_rows if len(tables) == 2 else None,
        val_size=val_size,
        categories=[column_of(table, name, "dataset.categories") for name in categories],
        drop_columns=[column_of(table, name, "dataset.drop_columns") for name in drop_columns],
    )
    return replace(prepared, notes=(told_kinds(prepared), *prepared.notes))


def told_kinds(prepared: Prepared) -> str:
    """`columns: 2 numbers (size, count), 1 category (colour); predicted: class, one of no and yes`."""
    columns: dict[str, list[str]] = {"number": [], "yes or no": [], "category": []}
    for column in prepared.fitted["columns"]:
        columns["yes or no" if column.get("pair") else column["kind"]].append(column["name"])
    plural = {"number": "numbers", "yes or no": "of yes or no", "category": "categories"}
    parts = [
        f"{len(names)} {kind if len(names) == 1 else plural[kind]} ({listed(names, most=KINDS_NAMED)})"
        for kind, names in columns.items()
        if names
    ]
    classes = f"one of {len(prepared.classes)} classes" if prepared.classes else "a number"
    return f"columns: {', '.join(parts)}; predicted: {printable(prepared.fitted['target']['name'])}, {classes}"


def locate(root: str | None, path: str | None) -> Path:
    if path is None:
        raise DataError(
            "dataset.path is not given: dlcli does not know which table to read.",
            hint="dataset.path=rows.csv dataset.target=COLUMN; to leave columns out: dataset.drop_columns=[COLUMN]",
        )
    given = Path(path).expanduser()
    found = given if given.is_file() else find_under(data_roots(root), (path,))
    if found is None or not found.is_file():
        raise missing("The table", path, data_roots(root), name="csv", reason="and it is not a file here either")
    return found


def column_of(table: TextTable, wanted: str | int | None, setting: str) -> str:
    """The name of a column, given by name or by number from 1 on. Raises ConfigError if it does not exist."""
    names = table.names
    if wanted is None:
        return names[-1]
    if str(wanted) in names:
        return str(wanted)
    if str(wanted).isdecimal() and 1 <= int(wanted) <= len(names):
        return names[int(wanted) - 1]
    better = nearest(str(wanted), names)
    message = f"{setting}={printable(wanted)}: {printable(table.source)} has the columns {listed(names, most=30)}"
    raise ConfigError(message, hint=f"{setting}={better}" if better else "Choose one of them.")


@lru_cache(maxsize=1)
def prepare_adult(root: str | None, *, val_size: float) -> Prepared:
    """UCI Adult (Kohavi 1996): who earns more than 50,000 dollars a year; 32,561 people, and 16,281 in the test split.

    The test file begins with the line `|1x3 Cross validator`, and its labels end in a full stop.
    """
    roots = data_roots(root)
    parts = []
    for name in ("adult.data", "adult.test"):
        found = find_under(roots, [f"{folder}{name}{end}" for end in (".gz", "") for folder in ("adult/", "")])
        if found is None:
            raise missing("UCI Adult", f"adult/{name}.gz", roots, name="adult", reason="dlcli does not download it")
        parts.append(read_table(found, delimiter="comma", header=False, names=ADULT, comment="|"))
    train, test = parts
    labels = [chunk.replace(".", "") for chunk in test.chunks["income"]]
    table = joined(train, replace(test, chunks={**test.chunks, "income": labels}))
    return prepare(table, target="income", target_kind="class", num_own_test=test.num_rows, val_size=val_size)


@lru_cache(maxsize=1)
def prepare_diabetes(*, val_size: float) -> Prepared:
    """Efron et al. 2004, "Least angle regression": 442 people, and the progress of their diabetes a year later."""
    folder = _sklearn_data()
    rows = read_table(folder / "diabetes_data_raw.csv.gz", delimiter="space", header=False, names=DIABETES)
    target = read_table(folder / "diabetes_target.csv.gz", delimiter="space", header=False, names=("progression",))
    table = replace(rows, names=(*rows.names, *target.names), chunks={**rows.chunks, **target.chunks})
    return prepare(table, target="progression", target_kind="number", val_size=val_size)


def _sklearn_data() -> Path:
    """The folder of scikit-learn's files, found without running the package: its import takes 1.8 CPU-seconds."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (data := Path(folder) / "datasets" / "data").is_dir():
            return data
    raise EnvironmentFault("scikit-learn's data files are missing.", hint="pip install scikit-learn")


# ----------------------------------------------------------------------------------------------------------- the splits


def prepare(
    table: TextTable,
    *,
    target: str,
    target_kind: str,
    val_size: float,
    num_own_test: int | None = None,
    categories: Sequence[str] = (),
    drop_columns: Sequence[str] = (),
) -> Prepared:
    """Features and targets by split. num_own_test: how many rows at the end are the test split."""
    cells = table.cells(target)
    present = np.flatnonzero([not is_missing(cell) for cell in cells])
    kind = class_target if target_kind == "class" else number_target
    goal = kind(table, target, present)
    own_test = None if num_own_test is None else present >= table.num_rows - num_own_test
    splits = split_rows(goal, own_test, val_size)
    rows = {split: present[places] for split, places in splits.items()}
    columns, parts, notes = fit(table, rows["train"], skip=(target, *drop_columns), categories=categories)
    commas = [c.name for c in (goal, *columns) if getattr(c, "form", POINT) != POINT]
    if commas:
        notes.insert(0, f"read with a decimal comma: {listed(commas)}")
    features = np.concatenate(parts, axis=1)
    if num_lacking := table.num_rows - len(present):
        notes.append(f"{num_lacking:,} rows without a {printable(target)} are left out")
    return Prepared(
        features={split: features[r] for split, r in rows.items()},
        targets={split: goal.values[places] for split, places in splits.items()},
        classes=goal.classes,
        fitted=_fitted(table, columns, goal, splits["train"]),
        notes=tuple(notes),
    )


def _fitted(table: TextTable, columns: Sequence[Column], goal: Target, train: np.ndarray) -> dict[str, Any]:
    """The plain data that predictions need."""
    target: dict[str, Any] = {"name": goal.name}
    if not goal.classes:
        mean, std = float(goal.values[train].mean()), float(goal.values[train].std())
        if not std > 1e-12 * abs(mean):
            raise DataError(f"the target {printable(goal.name)} is {mean:g} in every row.", hint="dataset.target=")
        target |= {"mean": mean, "std": std}
    return {"columns": as_plain(columns), "names": list(table.names), "has_header": table.has_header, "target": target}


def fit(
    table: TextTable, train: np.ndarray, *, skip: Sequence[str], categories: Sequence[str]
) -> tuple[list[Column], list[np.ndarray], list[str]]:
    """The useful columns, their features (N, width), and notes for the user."""
    columns: list[Column] = []
    parts: list[np.ndarray] = []
    dropped: dict[str, list[str]] = {}
    gaps: list[str] = []
    notes: list[str] = []
    for name in table.names:
        if name in skip:
            continue
        cells, is_category = table.cells(name), name in categories
        column = fit_column(
            name, cells, train, max_categories=MOST_CATEGORIES, is_category=is_category, delimiter=table.delimiter
        )
        if not is_category and not isinstance(column, Number):
            check_forms(table, name, [(row, cells[row]) for row in train])
        if isinstance(column, str):
            dropped.setdefault(column, []).append(name)
            continue
        encoded = column.encode(cells)
        columns.append(column)
        parts.append(encoded.features)
        if num_missing := int(encoded.is_missing.sum()):
            gaps.append(f"{printable(name)} {num_missing:,}")
        if encoded.is_bad.any():
            bad = told_cells(table, cells, np.flatnonzero(encoded.is_bad))
            count = f"{printable(name)} {int(encoded.is_bad.sum()):,} ({bad})"
            note = f"cells that are not numbers, treated as missing: {count}"
            notes.append(f"{note}; if the column holds names: dataset.categories=[{printable(name)}]")
    if not columns:
        raise DataError(f"no column of {printable(table.source)} tells anything about the target.", hint=_told(dropped))
    return columns, parts, [*notes, *_notes(dropped, gaps, columns)]


def told_cells(table: TextTable, cells: Sequence[str], rows: np.ndarray) -> str:
    """`line 7: four; line 9: inf`, and how many more."""
    more = f" and {len(rows) - BAD_NAMED:,} more" if len(rows) > BAD_NAMED else ""
    examples = (f"{table.place(row)}: {printable(cells[row], limit=40)}" for row in rows[:BAD_NAMED].tolist())
    return "; ".join(examples) + more


def check_forms(table: TextTable, name: str, cells: Sequence[tuple[int, str]]) -> None:
    """Raise DataError if most cells are numbers, some with a point and some with a comma. cells: (row, cell)."""
    filled = [(row, cell) for row, cell in cells if not is_missing(cell)]
    comma = [(r, c) for r, c in filled if "," in c and is_number_in_some_form(c)]
    point = [(r, c) for r, c in filled if is_number(c)]
    if table.delimiter == "," or not comma or not point or len(comma) + len(point) < MOSTLY * len(filled):
        return
    examples = " and ".join(f"{printable(cell)} ({table.place(int(row))})" for row, cell in (point[0], comma[0]))
    raise DataError(
        f"the column {printable(name)} has numbers of two kinds: {examples}.",
        hint=f"Write all of them the same way; or, if they are names: dataset.categories=[{printable(name)}]",
    )


def _notes(dropped: dict[str, list[str]], gaps: Sequence[str], columns: Sequence[Column]) -> list[str]:
    cut = [c.name for c in columns if isinstance(c, Category) and len(c.values) == MOST_CATEGORIES]
    sentences = [
        _told(dropped),
        f"missing cells (a number becomes the mean and is marked; else a category): {', '.join(gaps)}" if gaps else "",
        f"{listed(cut)}: only the {MOST_CATEGORIES} commonest values have a feature of their own" if cut else "",
    ]
    return [sentence for sentence in sentences if sentence]


def _told(dropped: dict[str, list[str]]) -> str:
    parts = [f"{listed(names)} ({why})" for why, names in dropped.items()]
    return f"columns left out: {'; '.join(parts)}" if parts else ""


def split_rows(goal: Target, own_test: np.ndarray | None, val_size: float) -> dict[str, np.ndarray]:
    """The places of each split's rows, ascending int64. own_test: (N,) bool; None: a fixed fifth."""
    is_test = fixed_test(goal) if own_test is None else own_test
    rest = np.flatnonzero(~is_test)
    wanted = val_size if isinstance(val_size, int) else max(1, round(val_size * len(rest)))
    if not 0 < wanted < len(rest):
        raise ConfigError(
            f"dataset.val_size={val_size} does not leave any of the {len(rest)} training rows to train on.",
            hint=f"Choose a number from 1 to {len(rest) - 1}." if len(rest) > 1 else None,
        )
    is_val = np.zeros(len(is_test), dtype=bool)
    is_val[rest[scattered(len(rest), "validation").argsort()[:wanted]]] = True
    masks = {"train": ~is_test & ~is_val, "val": is_val, "test": is_test}
    return {split: np.flatnonzero(mask) for split, mask in masks.items()}


def fixed_test(goal: Target) -> np.ndarray:
    """(N,) bool: a fifth of the rows (with classes, of each class of two rows or more); the same for every seed."""
    order = scattered(len(goal.values), "test")
    labels = goal.values if goal.classes else np.zeros(len(goal.values), dtype=np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(max(1, len(goal.classes))):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(TEST_FRACTION * len(rows)), 1), len(rows) - 1)
        is_test[rows[order[rows].argsort()[:count]]] = True
    return is_test


def scattered(count: int, word: str) -> np.ndarray:
    """(count,) uint64: splitmix64 (Steele, Lea and Flood 2014) of `word` and the place."""
    start = np.uint64(int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little"))
    words = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


# ----------------------------------------------------------------------------------------------------------- the target


def class_target(table: TextTable, name: str, rows: np.ndarray) -> Target:
    """Classes in the order of their numbers or letters. Raises DataError for what looks like a number instead.

    rows: those with a target, int64.
    """
    all_cells = table.cells(name)
    cells = [all_cells[row] for row in rows]
    found = {*cells}
    form, _, is_bad = best_numbers(list(found), table.delimiter)
    are_numbers = not is_bad.any()
    where = f"the target {printable(name)} of {printable(table.source)}"
    if len(found) < 2:
        has = f"is {printable(min(found))} in every row" if found else "is empty"
        raise DataError(f"{where} {has}: there is nothing to learn.", hint="dataset.target=COLUMN")
    value = {cell: float(as_point(cell, form)) for cell in found} if are_numbers else {}
    is_fraction = any(number % 1 for number in value.values())
    if (is_fraction and len(found) > MANY_NUMBERS) or len(found) > len(cells) / 2 > MANY_NUMBERS:
        hint = "To predict a number: task=regression" if are_numbers else "dataset.target=COLUMN"
        raise DataError(
            f"{where} has {len(found):,} different values in {len(cells):,} rows: these are not classes.", hint=hint
        )
    classes = sorted(found, key=lambda cell: (value.get(cell, 0.0), cell))
    label = {cls: i for i, cls in enumerate(classes)}
    return Target(name, np.array([label[cell] for cell in cells], dtype=np.int64), tuple(classes))


def number_target(table: TextTable, name: str, rows: np.ndarray) -> Target:
    """The same for numbers. Raises DataError, with the first lines, if some cells are not numbers."""
    cells = table.cells(name)
    form, values, is_bad = best_numbers([cells[row] for row in rows], table.delimiter)
    where = f"the target {printable(name)} of {printable(table.source)}"
    hint = "To predict a class: task=classification; or dataset.target=COLUMN"
    if not len(values):
        raise DataError(f"{where} is empty.", hint=hint)
    if is_bad.any():
        if is_bad.mean() <= 1 - MOSTLY:
            hint = "Correct these cells, or leave them empty: rows without a target are left out."
        message = told_cells(table, cells, rows[is_bad])
        raise DataError(
            f"{where} is not a number in {int(is_bad.sum()):,} of {len(rows):,} rows ({message}).", hint=hint
        )
    return Target(name, values, (), form)
