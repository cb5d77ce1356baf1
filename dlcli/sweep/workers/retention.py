"""Which trials keep their weights: the best, or those that no other beats in everything; the disk is not filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlcli.runs.disk import discard
from dlcli.runs.folder import RunFolder
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.ranking import front, ranked
from dlcli.sweep.study.trial_record import Record, trial_folder


def keep_best(folder: Path, records: Sequence[Record], definition: Definition) -> None:
    """Delete the weights of finished trials that are not among the best now: they cannot come back among them."""
    kept = {record.run_number for record in best(records, definition.objectives, definition.keep)}
    for record in records:
        if record.is_finished and record.number not in kept:
            drop_weights(folder, record.number)


def best(records: Sequence[Record], objectives: Sequence[Objective], keep: int) -> list[Record]:
    """The `keep` best trials by one objective; with several, the Pareto front, and at least `keep` by the first."""
    found = ranked(records, objectives)[:keep]
    return found if len(objectives) == 1 else [*found, *front(records, objectives)]


def drop_weights(folder: Path, number: int) -> None:
    """The checkpoints of a trial; its record and its curves stay."""
    checkpoints = RunFolder(trial_folder(folder, number)).checkpoints
    for place in (checkpoints, checkpoints.with_name(f".old-{checkpoints.name}")):  # a kill came in between
        if place.is_dir():
            discard(place)
