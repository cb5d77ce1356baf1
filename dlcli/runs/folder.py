"""The run folders: make one, lock it, write and read its record, find it again by any of its names, list them all.

    outputs/<experiment>/<YYYYMMDD-HHMMSS>-<two-word-name>/           and outputs/sweeps/<sweep>/<trial>/
        run.yaml  events.jsonl  checkpoints/  curves.png  summary.json  log.txt  .lock  wandb/

Order among runs is the date and time in the name, then the order of making; never a file's time of change.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from dlcli.config.renamed import renamed_record
from dlcli.config.settings import RESERVED_NAMES
from dlcli.errors import CheckpointError, ConfigError, EnvironmentFault, printable
from dlcli.runs.disk import environment_fault, flock, read_json, write_atomically
from dlcli.runs.names import candidates, checked_name
from dlcli.runs.redaction import redact

MAX_RECORD_BYTES = 4_000_000
_FOLDER = re.compile(r"(\d{8}-\d{6})-(.+)")

SWEEPS, SWEEP_FILE = "sweeps", "sweep.json"  # outputs/sweeps/<sweep>/ has this file

_LOCK_PATIENCE_S = 0.3  # somebody listing the runs holds a lock for microseconds while looking at it


class RunFolder:
    """One run's folder; nothing is read or written before a method is called."""

    def __init__(self, path: Path):
        self.path = path
        self.folder_name = path.name
        match, group = _FOLDER.fullmatch(path.name), _FOLDER.fullmatch(path.parent.name)
        self.is_member = match is None and (group is not None or path.parent.parent.name == SWEEPS)  # seed or trial
        self.stamp, self.name = (match[1], match[2]) if match else ("", path.name)
        self.experiment, self.outputs = path.parent.name, path.parent.parent
        if self.is_member:
            self.name = f"{group[2] if group else path.parent.name}/{path.name}"
            self.experiment, self.outputs = (path.parent if group is None else self.outputs).name, self.outputs.parent
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.run_yaml = path / "run.yaml"
        self.summary = path / "summary.json"
        self.curves = path / "curves.png"
        self.log = path / "log.txt"
        self.wandb = path / "wandb"
        self.lock_file = path / ".lock"
        self._lock_fd: int | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, outputs: Path, experiment: str, name: str | None = None, now: datetime | None = None) -> RunFolder:
        """Make a new folder that no other process has; `name` is drawn when None.

        Errors: ConfigError for a name that is none, EnvironmentFault when the folder cannot be made.
        """
        parent = outputs / checked_name(experiment.replace("/", "-"), "experiment")
        if name is not None and checked_name(name, "name") in RESERVED_NAMES:
            raise ConfigError(f"a run cannot be called {name}", hint=f"These words mean others: {RESERVED_NAMES}.")
        stamp = f"{now or datetime.now():%Y%m%d-%H%M%S}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            taken = {run.name for run in _folders(outputs)} if name is None else set()
            for word in candidates(name, taken):
                try:
                    os.mkdir(parent / f"{stamp}-{word}")  # exclusive: of two processes one gets it
                except FileExistsError:
                    continue
                run = cls(parent / f"{stamp}-{word}")
                run.lock_file.write_text(json.dumps({"created_ns": time.time_ns()}) + "\n")
                return run
        except OSError as error:
            raise environment_fault(error, parent, "the run folder cannot be made") from error
        raise AssertionError("names never end")

    # -- lock

    def lock(self) -> RunFolder:
        """Hold the run until `unlock` or the end of this process, however it ends; EnvironmentFault if it is held."""
        if self._lock_fd is not None:
            return self
        try:
            fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise environment_fault(error, self.lock_file, "the run cannot be locked") from error
        if not flock(fd, _LOCK_PATIENCE_S):
            os.close(fd)
            raise self._is_active()
        holder = (read_json(self.lock_file) or {}) | {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.ftruncate(fd, 0)
        os.pwrite(fd, (json.dumps(holder) + "\n").encode(), 0)
        self._lock_fd = fd
        os.register_at_fork(after_in_child=self.unlock)  # a data worker's copy would hold the run when we are killed
        return self

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> RunFolder:
        return self.lock()

    def __exit__(self, *exc_info: object) -> None:
        self.unlock()

    def is_locked(self) -> bool:
        """Whether a living process holds the run (this one included)."""
        try:
            fd = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not flock(fd, 0.0, shared=True)
        finally:
            os.close(fd)

    def _is_active(self) -> EnvironmentFault:
        holder = read_json(self.lock_file) or {}
        who = ", ".join(f"{word} {printable(holder.get(word, '?'))}" for word in ("pid", "host", "since"))
        return EnvironmentFault(
            f"run is active ({who}): {printable(self.path)}",
            hint=f"Wait for it, or stop it with: kill {printable(holder.get('pid', 'PID'))}",
        )

    # -- what is written down

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.yaml: plain data only (text, numbers, lists, dicts), secrets taken out."""
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(redact(record), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
        write_atomically(self.run_yaml, text.encode())

    def read_record(self) -> dict[str, Any]:
        """The content of run.yaml, its config in today's names.

        Raises CheckpointError when it is missing, damaged, too large or more than plain data.
        """
        import yaml

        from dlcli.config.plain_yaml import yaml_problems

        text = _read_limited(self.run_yaml)
        for (line, column), problem in yaml_problems(text, quick=True):
            raise _damaged(self.run_yaml, f"line {line}, column {column}: {problem}")
        try:
            record = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError) as error:
            raise _damaged(self.run_yaml, printable(error)) from error
        if not isinstance(record, dict):
            raise _damaged(self.run_yaml, "it is empty")
        return renamed_record(record)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary, (json.dumps(redact(summary), indent=1) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """The run_finished event, or None while there is none or it cannot be read."""
        return read_json(self.summary)


# ------------------------------------------------------------------------------------------------------ reading folders


def _folders(outputs: Path) -> Iterator[RunFolder]:
    for experiment in _subfolders(str(outputs)):
        for folder in _subfolders(experiment):
            if _FOLDER.fullmatch(os.path.basename(folder)):
                yield RunFolder(Path(folder))


def _subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return any(os.path.isfile(path / name) for name in ("run.yaml", "events.jsonl", ".lock"))


# ---------------------------------------------------------------------------------------------------------------- files


def _read_limited(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise _damaged(path, error.strerror or "cannot be read") from error
    if len(raw) > MAX_RECORD_BYTES:
        raise _damaged(path, f"larger than {MAX_RECORD_BYTES // 1_000_000} MB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, "not UTF-8") from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(path)}: {why}", hint="The run's record is missing or was changed; see: dlcli runs ls"
    )
