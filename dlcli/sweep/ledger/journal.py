"""The embedded ledger's file: Optuna's journal, one JSON record per line, that outlives what happens to its writers.

A writer holds an flock, which the system gives back when the writer dies: nobody waits for the dead (Optuna's own lock
files: 30 s). A last line without its end is a record that was never written (power, full disk): the next writer cuts it
off, readers pass over it (Optuna's own file: the study is lost). The trial's folder holds the same facts.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from dlcli.errors import CheckpointError, EnvironmentFault, printable
from dlcli.runs.disk import environment_fault, flock

LOCK_PATIENCE_S = 60.0


class DamagedLedger(CheckpointError):
    """A line in the middle that is not a record: the ledger is rebuilt from the trials' folders."""


class Journal(BaseJournalBackend):
    """path: the file; it need not exist."""

    def __init__(self, path: Path):
        self.path = path
        self._offsets = [0]  # where record n begins, as far as it was read
        self._file: tuple[int, int] | None = None  # device and inode, once there is one

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on. Raises DamagedLedger."""
        number = min(log_number_from, len(self._offsets) - 1)
        for line in self._lines(self._offsets[number]):
            if number + 1 == len(self._offsets):
                self._offsets.append(self._offsets[number] + len(line))
            if number >= log_number_from:
                yield self._record(line, number)
            number += 1

    def _lines(self, offset: int) -> Iterator[bytes]:
        """Whole lines only: the last one may be being written."""
        try:
            with self.path.open("rb") as file:
                self._check_same(file.fileno())
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            if self._file is not None:
                raise self._replaced() from None
            return
        yield from data[: data.rfind(b"\n") + 1].splitlines(keepends=True)

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            message = f"{printable(self.path)}: record {number + 1} is damaged"
            raise DamagedLedger(message, hint="dlcli sweep resume rebuilds the ledger from the trials' folders.")
        return record

    def _check_same(self, descriptor: int) -> None:
        """Raise DamagedLedger where the file was set aside and rebuilt: what was read of it counts no more."""
        found = os.fstat(descriptor)
        now = (found.st_dev, found.st_ino)
        self._file = self._file or now
        if self._file != now:
            raise self._replaced()

    def _replaced(self) -> DamagedLedger:
        return DamagedLedger(f"{printable(self.path)}: the ledger was rebuilt meanwhile", hint="It is opened again.")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """All of them or none. EnvironmentFault where the disk takes no more."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            try:
                create = os.O_CREAT if self._file is None else 0
                descriptor = os.open(self.path, os.O_RDWR | create | os.O_APPEND | os.O_CLOEXEC, 0o644)
                try:
                    self._check_same(descriptor)
                    _append(descriptor, data)
                finally:
                    os.close(descriptor)
            except FileNotFoundError:
                raise self._replaced() from None
            except OSError as error:
                raise environment_fault(error, self.path, "the ledger cannot be written") from error


def _append(descriptor: int, data: bytes) -> None:
    end = _end_of_lines(descriptor)
    os.ftruncate(descriptor, end)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _end_of_lines(descriptor: int) -> int:
    """Where the last line ends."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        if (found := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


@contextmanager
def locked(path: Path, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold a lock file for the block; it is given back when this process ends, however that is."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise environment_fault(error, path, "cannot be locked") from error
    try:
        if not flock(descriptor, patience_s):
            raise EnvironmentFault(f"{printable(path)} is held by another process", hint="Is one of them stopped?")
        yield
    finally:
        os.close(descriptor)
