"""A ledger that was damaged or lost, filled again from the trials' folders: the same numbers, points and results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState, create_trial

from dlcli.sweep.ledger.optuna_trials import frozen, text_of, values_of
from dlcli.sweep.study.trial_record import Record, read_records

if TYPE_CHECKING:
    from dlcli.sweep.ledger.claims import Ledger


def is_behind(ledger: Ledger) -> bool:
    """Whether the folders tell of trials, points or results that the ledger has lost or has otherwise.

    Asked while nobody claims: then the ledger has all that the folders have, but for ends that `reap` puts down.
    """
    trials = {trial.number: trial for trial in ledger.trials()}
    return any(_differs(ledger, trials.get(record.number), record) for record in read_records(ledger.folder))


def _differs(ledger: Ledger, trial: FrozenTrial | None, record: Record) -> bool:
    if trial is None:
        return True
    axes = {axis.key: axis for axis in ledger.definition.axes}
    point = {key: text_of(axes[key], value) for key, value in trial.params.items()}
    noted = ledger.record_of(trial)
    if not record.point.items() <= point.items() or (noted.point and noted.point != record.point):
        return True
    is_result = record.is_finished and trial.state == TrialState.COMPLETE
    return is_result and trial.values != values_of(record, ledger.definition.objectives)


def set_aside(path: Path) -> None:
    """Under another name, for who wants to know."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    if path.exists():
        path.rename(aside)


def rebuild(ledger: Ledger) -> None:
    """Fill an empty ledger. A number without a record waits, and gets a new point; who is at work stays so."""
    records = {record.number: record for record in read_records(ledger.folder)}
    for number in range(max(records, default=-1) + 1):
        record = records.get(number)
        ledger.study.add_trial(frozen(record, ledger.definition) if record else create_trial(state=TrialState.WAITING))
    ledger.recall_pause()
