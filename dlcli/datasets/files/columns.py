"""Columns of a table as numbers for a network: kinds are found, and statistics taken, in the training rows only.

    number     standardised; a missing one becomes the mean and, if training rows lack some, is marked in a feature;
               the same holds for a cell that is not a number in a column of numbers, such as a typing error
    yes or no  false/true, no/yes, ...: a number, 0 or 1
    category   one feature per value that training rows have, one for missing, one for all others

Letters: N rows, F features. NumPy only. A fitted column is plain data: it travels in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dlcli.datasets.files.csv_text import is_missing
from dlcli.datasets.files.number_forms import FORMS, POINT, as_point, is_number, possible_forms

PAIRS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("off", "on"))
LARGEST = 1e100  # beyond it a square might overflow; such a cell does not count as a number
MOSTLY = (
    0.9  # a column with this share of numbers (of filled training cells) is one of numbers; its other cells are missing
)
RARE = 2  # a value that fewer training rows have counts as one of the others: alone, it could only be learned by heart
FEWEST_NAMES = 20  # with so many rows, a column of all different words is taken for names of the rows


class Encoded(NamedTuple):
    """features: (N, width) float32. is_bad: which cells are neither numbers nor missing; both (N,) bool."""

    features: np.ndarray
    is_missing: np.ndarray
    is_bad: np.ndarray


@dataclass(frozen=True)
class Number:
    """(x - mean) / std; std of 0: all training rows with a value have the same value, and only the mark is a feature.

    pair: the words for 0 and 1 in a column of yes and no. form: how the column writes its numbers, see number_forms.
    """

    name: str
    mean: float
    std: float
    marks_missing: bool
    pair: tuple[str, ...] = ()
    form: str = POINT

    @property
    def width(self) -> int:
        return (self.std > 0) + self.marks_missing

    def encode(self, cells: Sequence[str]) -> Encoded:
        values, is_bad = numbers(cells, self.pair, self.form)
        has_none = np.isnan(values)
        parts = []
        if self.std > 0:
            parts.append(np.where(has_none, 0.0, (values - self.mean) / self.std))
        if self.marks_missing:
            parts.append(has_none)
        return Encoded(np.stack(parts, axis=1).astype(np.float32), has_none & ~is_bad, is_bad)


@dataclass(frozen=True)
class Category:
    """A feature of 0 or 1 per value. A value that training rows do not have counts as one of the others, if training
    has such; else it is all zeros, because a feature that is always 0 in training would have an untrained weight.
    """

    name: str
    values: tuple[str, ...]
    has_missing: bool
    has_others: bool

    @property
    def width(self) -> int:
        return len(self.values) + self.has_missing + self.has_others

    def encode(self, cells: Sequence[str]) -> Encoded:
        place = {value: i for i, value in enumerate(self.values)}
        others = self.width - 1 if self.has_others else -1
        places = looked_up(cells, lambda cell: -2 if is_missing(cell) else place.get(cell, others), np.int64)
        has_none = places == -2
        places[has_none] = len(self.values) if self.has_missing else others
        features = np.zeros((len(cells), self.width), dtype=np.float32)
        rows = np.flatnonzero(places >= 0)
        features[rows, places[rows]] = 1
        return Encoded(features, has_none, np.zeros(len(cells), dtype=bool))


Column = Number | Category


def looked_up(cells: Sequence[str], answer: Callable[[str], float], dtype: Any) -> np.ndarray:
    """(N,): the result of `answer` for each cell; it is called once for each different cell."""

    class Answers(dict[str, float]):
        def __missing__(self, cell: str) -> float:
            found = self[cell] = answer(cell)
            return found

    return np.array(list(map(Answers().__getitem__, cells)), dtype=dtype)


def numbers(cells: Sequence[str], pair: Sequence[str] = (), form: str = POINT) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64, NaN where there is no number, and (N,) bool: which cells are neither numbers nor missing.

    float() itself also takes "1_000", which is a name rather than a number, and digits of every script.
    """
    try:
        if pair or form != POINT or "_" in (text := "".join(cells)) or not text.isascii():
            raise ValueError
        values = np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        words = {word: float(i) for i, word in enumerate(pair)}

        def value(cell: str) -> float:
            if is_missing(cell):
                return np.nan
            if words:
                return words.get(cell.lower(), np.inf)
            return float(as_point(cell, form)) if is_number(cell, form) else np.inf

        values = looked_up(cells, value, np.float64)
    is_bad = np.abs(values) > LARGEST
    values[is_bad] = np.nan
    return values, is_bad


def fit_column(
    name: str,
    cells: Sequence[str],
    train: np.ndarray,
    *,
    max_categories: int,
    is_category: bool = False,
    delimiter: str = ",",
) -> Column | str:
    """The column as fitted to the training rows ((n,) int64); or, as a clause, why it is of no use.

    delimiter: what divides the cells; if it is not a comma, numbers may have a decimal comma.
    """
    in_train = [cells[row] for row in train]
    if not is_category:
        values, is_bad = numbers(in_train)
        if not is_bad.any():
            return fit_number(name, values, train)
        words = {cell.lower() for cell in in_train[:1000]}
        for pair in PAIRS:
            if words & {*pair} and all(word in pair or is_missing(word) for word in words):
                values, is_bad = numbers(in_train, pair)
                if not is_bad.any():
                    return fit_number(name, values, train, pair)
        form, values, is_bad = best_numbers(in_train, delimiter)
        num_numbers = int((~np.isnan(values)).sum())
        if num_numbers and num_numbers >= MOSTLY * (num_numbers + int(is_bad.sum())):
            return fit_number(name, values, train, form=form)
    return fit_category(name, in_train, max_categories)


def best_numbers(cells: Sequence[str], delimiter: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The form in which the most cells are numbers, and the result of `numbers` in that form."""
    tried = [(form, *numbers(cells, form=form)) for form in possible_forms({*cells}, delimiter)]
    return min(tried, key=lambda found: int(found[2].sum()))


def fit_number(
    name: str, values: np.ndarray, rows: np.ndarray, pair: tuple[str, ...] = (), form: str = POINT
) -> Column | str:
    """values: (n,) float64, NaN where missing; rows: their places in the file, (n,) int64."""
    present = values[~np.isnan(values)]
    if not len(present):
        return "it is empty"
    if len(present) == len(values) > 2 and np.ptp(values - rows) == 0:
        return "it numbers the rows"
    mean, std = float(present.mean()), float(present.std())
    if not std > 1e-12 * abs(mean):  # equal numbers differ by no more than rounding
        std = 0.0
    column = Number(name, mean, std, marks_missing=len(present) < len(values), pair=pair, form=form)
    return column if column.width else "it is the same in every row"


def fit_category(name: str, cells: Sequence[str], max_categories: int) -> Column | str:
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell] = counts.get(cell, 0) + 1
    present = {cell: count for cell, count in counts.items() if not is_missing(cell)}
    num_present = sum(present.values())
    if len(present) == num_present >= FEWEST_NAMES:
        return "it differs in every row"
    kept = sorted((cell for cell, n in present.items() if n >= RARE), key=lambda cell: (-present[cell], cell))
    kept = sorted(kept[:max_categories])
    column = Category(
        name,
        tuple(kept),
        has_missing=num_present < len(cells),
        has_others=sum(map(present.__getitem__, kept)) < num_present,
    )
    return column if column.width > 1 else "it is empty" if not present else "it is the same in every row"


# -------------------------------------------------------------------------------------------------------- as plain data


def as_plain(columns: Sequence[Column]) -> list[dict[str, Any]]:
    kinds = {Number: "number", Category: "category"}
    return [{"kind": kinds[type(column)], **asdict(column)} for column in columns]


def from_plain(columns: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The inverse of `as_plain`. Raises LookupError, TypeError or ValueError for anything else."""
    found: list[Column] = []
    for column in columns:
        name = str(column["name"])
        if column["kind"] == "number":
            pair = tuple(map(str, column["pair"]))
            mean, std = float(column["mean"]), float(column["std"])
            form = str(column.get("form", POINT))  # older checkpoints have none
            found.append(Number(name, mean, std, bool(column["marks_missing"]), pair, form))
            if form not in FORMS:
                raise ValueError(f"the column {name!r} has numbers of an unknown form, {form!r}")
            if not found[-1].width:
                raise ValueError(f"the column {name!r} has no feature: its std is {std}, missing cells are not marked")
        else:
            values = tuple(map(str, column["values"]))
            found.append(Category(name, values, bool(column["has_missing"]), bool(column["has_others"])))
    return found
