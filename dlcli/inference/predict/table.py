"""Rows of a user's table, answered for one by one: a class or a number, as the run was trained to."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.datasets.storage.roots import exists
from dlcli.errors import CheckpointError, DataError, printable
from dlcli.inference.predict.text_inputs import check_stdin_once

if TYPE_CHECKING:
    from torch import Tensor

    from dlcli.datasets.files.columns import Column
    from dlcli.datasets.files.csv_text import TextTable
    from dlcli.inference.trained import Trained

COLUMNS = ("table", "row", "answer", "probability", "others")
AT_ONCE = 4096
Answer = dict[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A run's facts of its table. names: of its columns, in their order, the target's among them."""

    names: tuple[str, ...]
    has_header: bool
    columns: tuple[Column, ...]
    target: str
    mean: float
    std: float


def answers(trained: Trained, names: Sequence[str], *, top: int, save: str | None = None) -> list[Answer]:
    """One per row of each table: {input, row, class, probability, classes: [{class, probability}]} or {input, row,
    target, number}; {input, row, error} of a row with a cell that is not a number, {input, error} of a file.

    names: CSV files and the like; - for one from stdin.
    """
    check_stdin_once(names, "rows.csv")
    fitted, delimiter = stored_columns(trained), trained.tree["dataset"].get("delimiter", "auto")
    found: list[Answer] = []
    for name in names:
        try:
            if (message := told_of_a_row(name, fitted, delimiter)) is not None:
                raise DataError(message)
            table = matched(read(name, trained), fitted)
            found += answers_of(trained, fitted, table, name, top)
        except DataError as error:
            found.append({"input": name, "error": error.message})
    return found


def row(answer: Answer) -> list[str | None]:
    """A line of the table."""
    from dlcli.inference.predict.images import class_cells

    place = [printable(answer["input"]), str(answer["row"])]
    if "number" in answer:
        return [*place, f"{answer['number']:.6g}", None, None]
    return [*place, *class_cells(answer["classes"])]


def stored_columns(trained: Trained) -> Fitted:
    """Raises CheckpointError where the checkpoint's columns do not fit its network."""
    from dlcli.datasets.files.columns import from_plain
    from dlcli.inference.trained import stored_faults

    with stored_faults(trained.folder):
        plain = trained.manifest.fitted
        columns, target = tuple(from_plain(plain["columns"])), plain["target"]
        width, num_features = sum(column.width for column in columns), trained.tree["dataset"]["num_features"]
        if width != num_features:
            raise CheckpointError(
                f"{printable(trained.folder)}: its columns make {width} features, its network takes {num_features}",
                hint="Train the run again.",
            )
        names, mean, std = tuple(map(str, plain["names"])), float(target.get("mean", 0)), float(target.get("std", 1))
        return Fitted(names, bool(plain["has_header"]), columns, str(target["name"]), mean, std)


def read(name: str, trained: Trained) -> TextTable:
    """The table in a file or on stdin. A header is expected where the run's own table has one."""
    from dlcli.datasets.files.csv_text import parse_table, read_table

    header: str | bool = True if trained.manifest.fitted["has_header"] else "auto"
    delimiter = trained.tree["dataset"].get("delimiter", "auto")
    if name != "-":
        return read_table(Path(name).expanduser(), delimiter=delimiter, header=header)
    lines = io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()), encoding="utf-8-sig", newline="")
    return parse_table(lines, "stdin", delimiter=delimiter, header=header)


def told_of_a_row(name: str, fitted: Fitted, delimiter: str = "auto") -> str | None:
    """Where no file is named but the cells of a row are typed: how to give them.

    delimiter: the run's, by its word; where it is none, the cells stay divided as they are typed.
    """
    from dlcli.datasets.files.csv_text import DELIMITERS

    if name == "-" or exists(Path(name).expanduser()):
        return None
    own = DELIMITERS.get(delimiter, "")
    typed = next((sign for sign in f"{own}\t;," if sign in name), ",")
    cells = [cell.strip() for cell in name.split(typed)]
    names = [column for column in fitted.names if column != fitted.target]
    if len(cells) < min(2, len(names)) or "/" in name or "=" in name:
        return None
    values = [*cells[: len(names)], *["..."] * (len(names) - len(cells))]
    header, line = ((own or typed).replace("\t", r"\t").join(row) for row in (names, values))
    return f"is not a file; give a row on stdin:  printf '{header}\\n{line}\\n' | dlcli predict -"


def matched(table: TextTable, fitted: Fitted) -> TextTable:
    """The table with the run's names for its columns. Raises DataError if one is missing; reports unused ones."""
    from dlcli.datasets.files.csv_text import listed

    if not table.has_header:
        table = named(table, fitted)
    lacking = [column.name for column in fitted.columns if column.name not in table.names]
    if lacking:
        plural = "s" if len(lacking) > 1 else ""
        raise DataError(f"lacks the column{plural} {listed(lacking)}; it has {listed(table.names)}")
    if extra := [name for name in table.names if name not in fitted.names]:
        print(f"note: {printable(table.source)}: columns that are not used: {listed(extra)}", file=sys.stderr)
    return table


def named(table: TextTable, fitted: Fitted) -> TextTable:
    """By place: all of the run's columns, or all but the target."""
    without = tuple(name for name in fitted.names if name != fitted.target)
    for names in (fitted.names, without):
        if len(names) == len(table.names):
            return replace(table, names=names, chunks=dict(zip(names, table.chunks.values(), strict=True)))
    raise DataError(f"has {len(table.names)} columns and no header; {len(without)} are expected")


def answers_of(trained: Trained, fitted: Fitted, table: TextTable, name: str, top: int) -> list[Answer]:
    import numpy as np
    import torch

    from dlcli.datasets.files.number_forms import POINT

    parts: list[np.ndarray] = []
    wrong: dict[int, str] = {}
    for column in fitted.columns:
        encoded = column.encode(cells := table.cells(column.name))
        parts.append(encoded.features)
        for i in np.flatnonzero(encoded.is_bad).tolist():
            comma = " with a decimal comma, as in training" if getattr(column, "form", POINT) != POINT else ""
            wrong.setdefault(i, f"{column.name} is {printable(cells[i])}, which is not a number{comma}")
    outputs = predicted(trained, torch.from_numpy(np.concatenate(parts, axis=1)))
    found: list[Answer] = []
    for i in range(table.num_rows):
        place = {"input": name, "row": i + 1}
        found.append(place | ({"error": wrong[i]} if i in wrong else said(trained, fitted, outputs[i], top)))
    return found


def said(trained: Trained, fitted: Fitted, output: Tensor, top: int) -> Answer:
    """output: probabilities (K,), or a standardised number ()."""
    from dlcli.inference.predict.images import most_probable

    if output.dim() == 0:
        return {"target": fitted.target, "number": output.item() * fitted.std + fitted.mean}
    classes = most_probable(output, trained.manifest.classes, top)
    return {**classes[0], "classes": classes}


def predicted(trained: Trained, features: Tensor) -> Tensor:
    """Probabilities (N, K) or standardised numbers (N,) on the CPU. features: (N, F) float32."""
    import torch

    from dlcli.tasks.classification import Classification
    from dlcli.tasks.regression import Regression

    task, device = trained.task, trained.runtime.device
    if not isinstance(task, Classification | Regression):
        message = f"{trained.manifest.run} predicts neither classes nor numbers"
        raise CheckpointError(message, hint="Name another run: dlcli runs ls")
    with torch.no_grad(), trained.runtime.autocast()():
        return torch.cat([task.predict(part.to(device)).cpu() for part in features.split(AT_ONCE)])
