"""What has become of a sweep's trials, for those who look on: from the folders, or from a shared ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.trial_record import FAILURES, FILE, Record, read_record

if TYPE_CHECKING:
    from dlcli.sweep.ledger.claims import Ledger


class Reader:
    """Reads an embedded sweep from its folders alone, again where they have changed; without Optuna or torch."""

    def __init__(self, folder: Path, definition: Definition):
        self.folder, self.definition = folder, definition
        self._read: dict[int, tuple[tuple[int, int], Record]] = {}

    def records(self) -> list[Record]:
        """By number."""
        try:
            names = [name for name in os.listdir(self.folder) if name.isdecimal()]
        except OSError:
            names = []
        for name in names:
            try:
                found = os.stat(self.folder / name / FILE)
            except OSError:
                continue
            number, changed = int(name), (found.st_ino, found.st_mtime_ns)
            if self._read.get(number, ((0, 0), None))[0] != changed and (record := read_record(self.folder, number)):
                self._read[number] = (changed, record)
        return [record for _, (_, record) in sorted(self._read.items())]

    def paused(self) -> str | None:
        from dlcli.sweep.ledger.opening import open_ledger

        return open_ledger(self.folder, self.definition).paused()


class SharedReader(Reader):
    """Reads a sweep whose ledger several machines share: all their trials."""

    def __init__(self, ledger: Ledger):
        super().__init__(ledger.folder, ledger.definition)
        self.ledger = ledger

    def records(self) -> list[Record]:
        return self.ledger.records()

    def paused(self) -> str | None:
        return self.ledger.paused()


def open_reader(folder: Path, definition: Definition, storage: str | None = None) -> Reader:
    if definition.storage is None:
        return Reader(folder, definition)
    from dlcli.sweep.ledger.opening import open_ledger

    return SharedReader(open_ledger(folder, definition, storage=storage))


def counts(records: Sequence[Record]) -> dict[str, int]:
    """completed, pruned, failed; and of the failed, which: diverged is a result, a bad one, and nobody's fault."""
    states = [record.state for record in records]
    found = {
        "completed": states.count("completed"),
        "pruned": states.count("pruned"),
        "failed": sum(state in FAILURES or state == "diverged" for state in states),
    }
    return found | {state: states.count(state) for state in ("diverged", *FAILURES) if state in states}
