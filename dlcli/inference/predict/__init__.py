"""Answers of a trained network for what a user has at hand: one file per kind of data, named as the kind.

Each has

    answers(trained, names, *, top, save)    one plain dict per input; {"input": ..., "error": ...} where there is none
    COLUMNS, row(answer)                     the same as a table; see `as_table`

names: what was typed: files, folders, texts, - for stdin. One bad input spoils no other. save: a folder for pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dlcli.datasets.kinds import KINDS
from dlcli.errors import CheckpointError, printable


def predictor(kind: str) -> Any:
    """The module that answers for a kind of data. Raises CheckpointError for a kind that has none."""
    known = [other.name for other in KINDS.values() if other.question]
    if kind not in known:
        message = f"the run was trained on data of the kind {printable(kind)}, for which there are no predictions"
        raise CheckpointError(message, hint=f"Use a run of one of these kinds: {', '.join(known)}.")
    return import_module(f"dlcli.inference.predict.{kind}")


def as_table(module: Any, answers: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str | None]]]:
    """Names of the columns, and the rows. The last column holds errors; empty columns are left out."""
    target = next((answer["target"] for answer in answers if "target" in answer), "answer")
    names = [*(printable(target) if name == "answer" else name for name in module.COLUMNS), "error"]
    rows = [_failed(module, answer) if "error" in answer else [*module.row(answer), None] for answer in answers]
    used = [i for i in range(len(names)) if not rows or any(row[i] is not None for row in rows)]
    return [names[i] for i in used], [[row[i] for i in used] for row in rows]


def _failed(module: Any, answer: dict[str, Any]) -> list[str | None]:
    """Which input it was, and why there is no answer."""
    place = [printable(answer.get("image", answer.get("input")))]
    place += [str(answer[name]) for name in module.COLUMNS[1:] if name in answer]  # a table's row
    return [
        *place,
        *[None] * (len(module.COLUMNS) - len(place)),
        printable(answer["error"].removesuffix("."), limit=600),
    ]
