"""Answers of a trained network for what a user has at hand: one file per kind of data, named as the kind.

Each has

    answers(trained, names, *, top, save)    one plain dict per input; {"input": ..., "error": ...} where there is none
    COLUMNS, row(answer)                     the same as a table

names: what was typed: files, folders, texts, - for stdin. One bad input spoils no other. save: a folder for pictures.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dlcli.errors import CheckpointError, printable

INPUTS = {  # kind of data -> how an input of it is written in a command
    "images": "IMAGE",
    "sentences": "'A SENTENCE'",
    "stream": "'THE BEGINNING'",
    "pairs": "'A SENTENCE'",
    "speech": "RECORDING",
    "table": "ROWS.csv",
    "boxes": "IMAGE",
    "masks": "IMAGE",
}


def predictor(kind: str) -> Any:
    """The module that answers for a kind of data. Raises CheckpointError for a kind that has none."""
    if kind not in INPUTS:
        told = f"the run was trained on data of the kind {printable(kind)}, for which there are no predictions"
        raise CheckpointError(told, hint=f"There are some for {', '.join(INPUTS)}.")
    return import_module(f"dlcli.predicting.{kind}")
