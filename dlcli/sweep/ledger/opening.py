"""The ledger of a sweep, opened: embedded or shared, made where there is none, rebuilt where it is damaged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import optuna

from dlcli.errors import EnvironmentFault, printable
from dlcli.sweep.ledger.address import VARIABLE
from dlcli.sweep.ledger.claims import CLAIMS, LEDGER, Ledger
from dlcli.sweep.ledger.journal import Journal, locked
from dlcli.sweep.ledger.rebuilding import is_behind, rebuild, set_aside
from dlcli.sweep.study.definition import Definition


def open_ledger(folder: Path, definition: Definition, *, storage: str | None = None) -> Ledger:
    """The ledger of a sweep, made where there is none, rebuilt where it is damaged. storage: the full address of a
    shared one, with its password.

    Errors: EnvironmentFault when it cannot be reached.
    """
    if definition.storage is not None:
        from dlcli.sweep.ledger.shared import open_shared

        return open_shared(folder, definition, storage or os.environ.get(VARIABLE) or definition.storage)
    with locked(folder / CLAIMS):  # nobody claims meanwhile, so that folders and ledger tell the same
        try:
            ledger = _open_embedded(folder, definition)
            if not is_behind(ledger):
                return ledger
        except EnvironmentFault:
            raise
        except Exception as error:  # whatever Optuna says to damaged records; the folders hold the same facts
            print(f"the ledger is rebuilt: {type(error).__name__}: {printable(error)}", file=sys.stderr)
        set_aside(folder / LEDGER)
        ledger = _open_embedded(folder, definition)
        rebuild(ledger)
        return ledger


def _open_embedded(folder: Path, definition: Definition) -> Ledger:
    return Ledger(folder, definition, optuna.storages.JournalStorage(Journal(folder / LEDGER)))
