"""What is known of a trial, as plain data: in its folder (trial.json), which is the truth, and in the ledger.

outputs/sweeps/<sweep>/0007/trial.json  beside what any run folder holds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.events import finite

FILE = "trial.json"
OPEN = ("waiting", "running")
RESULTS = ("completed", "diverged")  # what is a result: good, or bad
FAILURES = ("out of memory", "killed", "data", "bug")
STATES = (*OPEN, *RESULTS, "pruned", *FAILURES)


@dataclass(frozen=True)
class Record:
    """values: of the objectives, of a completed trial only; reports: evaluation -> score, for the pruner;

    worker: who has it; reuse_of: the trial whose result it is, where that was the same; signature: of a failure;
    sampler: what Optuna's samplers and pruners have noted of it.
    """

    number: int
    point: dict[str, str]
    state: str = "running"
    reason: str | None = None
    signature: str | None = None
    values: list[float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reports: dict[str, float] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None
    reuse_of: int | None = None
    sampler: dict[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.state not in OPEN

    @property
    def is_failure(self) -> bool:
        return self.state in FAILURES

    @property
    def run_number(self) -> int:
        """The trial whose run this result is of."""
        return self.number if self.reuse_of is None else self.reuse_of

    def be(self, **changes: Any) -> Record:
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return finite({key: value for key, value in asdict(self).items() if value not in (None, {}) or key == "point"})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Record | None:
        """None for what `as_dict` has not written."""
        known = {entry.name for entry in fields(cls)}
        try:
            record = cls(**{key: value for key, value in plain.items() if key in known})
        except TypeError:
            return None
        is_right = isinstance(record.number, int) and isinstance(record.point, dict) and record.state in STATES
        return record if is_right else None

    def write(self, sweep: Path) -> None:
        folder = trial_folder(sweep, self.number)
        folder.mkdir(exist_ok=True)
        write_atomically(folder / FILE, (json.dumps(self.as_dict()) + "\n").encode())


def trial_folder(sweep: Path, number: int) -> Path:
    return sweep / f"{number:04}"


def read_record(sweep: Path, number: int) -> Record | None:
    return _read(trial_folder(sweep, number))


def read_records(sweep: Path) -> list[Record]:
    """All that stand in the folders, by number; without Optuna and without torch: 1,000 take a tenth of a second."""
    try:
        folders = sorted(entry for entry in sweep.iterdir() if entry.name.isdecimal())
    except OSError:
        return []
    return sorted((record for folder in folders if (record := _read(folder))), key=lambda record: record.number)


def _read(folder: Path) -> Record | None:
    plain = read_json(folder / FILE)
    record = Record.from_dict(plain) if plain else None
    return record if record and record.number == int(folder.name) else None
