"""A ledger that was damaged or lost, filled anew from the trials' folders: the same numbers, points and results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState, create_trial

from dlcli.sweep.record import read_records
from dlcli.sweep.translating import frozen, text_of

if TYPE_CHECKING:
    from dlcli.sweep.ledger import Ledger


def is_behind(ledger: Ledger) -> bool:
    """Whether the folders tell of trials, or of points, that the ledger has lost or has otherwise: it is written first.

    Asked while nobody claims.
    """
    axes = {axis.key: axis for axis in ledger.definition.axes}
    known = {
        trial.number: {key: text_of(axes[key], value) for key, value in trial.params.items()}
        for trial in ledger.trials()
    }
    records = read_records(ledger.folder)
    return any(not record.point.items() <= known.get(record.number, {}).items() for record in records) or any(
        record.number not in known for record in records
    )


def set_aside(path: Path) -> None:
    """Under another name, for who wants to know."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    if path.exists():
        path.rename(aside)


def rebuild(ledger: Ledger) -> None:
    """Fill an empty ledger. A number without a record waits, and gets its point anew; who is at work stays so."""
    records = {record.number: record for record in read_records(ledger.folder)}
    for number in range(max(records, default=-1) + 1):
        record = records.get(number)
        ledger.study.add_trial(frozen(record, ledger.definition) if record else create_trial(state=TrialState.WAITING))
    ledger.recall_pause()
