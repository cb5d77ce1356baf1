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
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dlcli.disk import environment_fault, flock, read_json, write_atomically
from dlcli.errors import CheckpointError, ConfigError, EnvironmentFault, printable
from dlcli.redaction import redact
from dlcli.run_names import RESERVED_NAMES, candidates, checked_name

MAX_RECORD_BYTES = 4_000_000
_FOLDER = re.compile(r"(\d{8}-\d{6})-(.+)")
_STEP_FOLDER = re.compile(r"step-\d+")
SWEEPS, SWEEP_FILE = "sweeps", "sweep.json"  # outputs/sweeps/<sweep>/ has this file
_OTHER_RUN = "See what there is with: dlcli runs ls"
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
        """The content of run.yaml; CheckpointError when it is missing, damaged, too large or more than plain data."""
        import yaml

        from dlcli.confdir import yaml_problems

        text = _read_limited(self.run_yaml)
        for (line, column), problem in yaml_problems(text, quick=True):
            raise _damaged(self.run_yaml, f"line {line}, column {column}: {problem}")
        try:
            record = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError) as error:
            raise _damaged(self.run_yaml, printable(error)) from error
        if not isinstance(record, dict):
            raise _damaged(self.run_yaml, "it is empty")
        return record

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomically(self.summary, (json.dumps(redact(summary), indent=1) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """The run_finished event, or None while there is none or it cannot be read."""
        return read_json(self.summary)


# -------------------------------------------------------------------------------------------------------------- finding


def outputs_folder(option: str | None = None) -> Path:
    """Where runs lie: the option, else $DLCLI_OUTPUTS, else ./outputs."""
    return Path(option or os.environ.get("DLCLI_OUTPUTS") or "outputs").expanduser()


def all_runs(outputs: Path) -> list[RunFolder]:
    """Every run folder, newest first."""
    runs = sorted(_folders(outputs), key=lambda run: run.stamp, reverse=True)
    stamps = [run.stamp for run in runs]
    if len(set(stamps)) == len(stamps):
        return runs
    return sorted(runs, key=lambda run: (run.stamp, _created_ns(run), run.folder_name), reverse=True)


def find_run(reference: str | None, outputs: Path) -> RunFolder:
    """A run by path, folder name, name, or the unique beginning of either; None and `latest` are the newest.

    Of several runs of the very name it is the newest too.
    Errors: ConfigError when none or several answer to it, with the names nearest to it.
    """
    if reference not in (None, "latest"):
        for path in (Path(os.path.expanduser(reference)), outputs / reference, *_members(reference, outputs)):
            if reference and _is_run(path):
                return RunFolder(path)
    runs = all_runs(outputs)
    if not runs:
        raise _unknown(reference or "latest", runs, outputs)
    if reference in (None, "latest"):
        return runs[0]
    if exact := next((run for run in runs if reference in (run.folder_name, run.name)), None):
        return exact
    found = [
        run for run in runs if reference and (run.name.startswith(reference) or run.stamp.startswith(reference))
    ] or [run for run in runs if reference and run.folder_name.startswith(reference)]
    if len(found) == 1:
        return found[0]
    raise _ambiguous(reference, found) if found else _unknown(reference, runs, outputs)


def _members(reference: str, outputs: Path) -> Iterator[Path]:
    """Where SWEEP/NUMBER and NAME/seed-NUMBER would lie."""
    group, slash, member = reference.rpartition("/")
    if slash and member.isdecimal():
        yield outputs / SWEEPS / group / f"{int(member):04}"
    elif slash and member.startswith("seed-"):
        runs = all_runs(outputs)
        found = runs[:1] if group == "latest" else (run for run in runs if group in (run.name, run.folder_name))
        yield from (run.path / member for run in found)


def find_runs(reference: str, outputs: Path) -> list[RunFolder]:
    """The run that a name means; the runs below it where it is a sweep or a group of several seeds."""
    sweep = outputs / SWEEPS / reference
    if reference and (sweep / SWEEP_FILE).is_file():
        return [RunFolder(path) for path in sorted(sweep.iterdir()) if path.name.isdecimal() and _is_run(path)]
    run = find_run(reference, outputs)
    return [RunFolder(run.path / name.rpartition("/")[2]) for name in seed_members(run)] or [run]


def seed_members(run: RunFolder) -> list[str]:
    """The runs of a group of several seeds, as they are named: NAME/seed-0, ...; none of a run of its own."""
    return sorted((f"{run.name}/{path.name}" for path in run.path.glob("seed-*")), key=lambda name: (len(name), name))


def find_checkpoint(reference: str | None, outputs: Path) -> Path:
    """The folder of a checkpoint, with `last` and `best` followed to their step folder.

    reference: a path (checkpoint folder, file in one, run folder), RUN (its best, else its last), RUN/last, RUN/best,
    RUN/step-00000060; None, `checkpoint`, `best` and `latest` are the best of the newest run that has a checkpoint,
    `last` is its last: a start that failed hides nothing.
    Errors: ConfigError when there is no such run, CheckpointError when it has no such checkpoint.
    """
    if reference in (None, "checkpoint", "best", "latest"):
        return _best_checkpoint(_newest_trained(outputs))
    if reference == "last":
        return _named_checkpoint(_newest_trained(outputs), "last")
    path = Path(os.path.expanduser(reference))
    if os.path.isfile(path):
        path = path.parent
    if os.path.islink(path) and path.name in ("last", "best"):
        return _follow(path)
    is_folder = os.path.isdir(path)
    if is_folder and ((path / "checkpoint.json").is_file() or _STEP_FOLDER.fullmatch(path.name)):
        return path
    if is_folder and path.name == "checkpoints":
        return _best_checkpoint(RunFolder(path.parent))
    beginning, slash, which = reference.rpartition("/")
    if slash and (which in ("last", "best") or _STEP_FOLDER.fullmatch(which)):
        beginning = beginning.removesuffix("/checkpoints")
        run = _newest_trained(outputs) if beginning == "latest" else find_run(beginning, outputs)
        return _named_checkpoint(run, which)
    return _best_checkpoint(find_run(reference, outputs))


def _newest_trained(outputs: Path) -> RunFolder:
    """The newest run that has a checkpoint; where none has one, the newest, of which that is told."""
    runs = all_runs(outputs)
    return next((run for run in runs if checkpoint_steps(run) or seed_members(run)), None) or find_run(None, outputs)


def _best_checkpoint(run: RunFolder) -> Path:
    for name in ("best", "last"):
        if (run.checkpoints / name).is_symlink():
            return _follow(run.checkpoints / name)
    steps = checkpoint_steps(run)
    if not steps and (members := seed_members(run)):
        raise CheckpointError(f"{run.name} is {len(members)} runs, one of each seed", hint=f"Name one: {members[0]}")
    if not steps:
        raise CheckpointError(f"{run.name} has no checkpoint yet: {printable(run.checkpoints)}", hint=_OTHER_RUN)
    return steps[-1]


def _named_checkpoint(run: RunFolder, name: str) -> Path:
    path = run.checkpoints / name
    if path.is_symlink():
        return _follow(path)
    if _STEP_FOLDER.fullmatch(name):
        path = next((p for p in checkpoint_steps(run) if int(p.name[5:]) == int(name[5:])), path)
    if not path.is_dir():
        steps = ", ".join(p.name for p in checkpoint_steps(run)) or "none"
        raise CheckpointError(f"{run.name} has no checkpoint {printable(name)}", hint=f"It has: {steps}.")
    return path


def checkpoint_steps(run: RunFolder) -> list[Path]:
    """The step folders of a run, by step."""
    try:
        names = [name for name in os.listdir(run.checkpoints) if _STEP_FOLDER.fullmatch(name)]
    except OSError:
        return []
    return [run.checkpoints / name for name in sorted(names, key=lambda name: int(name[5:]))]


def _follow(link: Path) -> Path:
    target = link.parent / os.readlink(link)
    if not target.is_dir():
        raise CheckpointError(f"{printable(link)} points at {printable(target.name)}, which is gone", hint=_OTHER_RUN)
    return target


# -------------------------------------------------------------------------------------------------------------- listing


@dataclass(frozen=True)
class RunRow:
    """One line of `dlcli runs ls`.

    status: completed, interrupted, pruned, failed, running or killed; created: ISO 8601.
    """

    name: str
    experiment: str
    status: str
    epochs: int | None
    metrics: dict[str, float]
    created: str
    path: Path


def row(run: RunFolder) -> RunRow:
    """Reads summary.json, else the end of events.jsonl: 2,000 runs take < 1 s."""
    summary = run.read_summary()
    said = summary if summary is not None else _last_epoch(run)
    epochs, metrics = said.get("epoch"), said.get("metrics")
    return RunRow(
        name=run.name,
        experiment=run.experiment,
        status="running" if run.is_locked() else str((summary or {}).get("status", "killed")),
        epochs=epochs if isinstance(epochs, int) else None,
        metrics=metrics if isinstance(metrics, dict) else {},
        created=_created(run.stamp),
        path=run.path,
    )


def _last_epoch(run: RunFolder, tail_bytes: int = 16_384) -> dict[str, Any]:
    """The last epoch event near the end of a run without a summary, or {}; its metrics are the best epoch's if near."""
    try:
        with run.events.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            lines = file.read().splitlines()
    except OSError:
        return {}
    last: dict[str, Any] = {}
    for line in reversed(lines):
        if line.startswith(b'{"event": "epoch"') and line.endswith(b"}"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            last = last or event
            if event.get("best"):
                return {**last, "metrics": event.get("metrics", {})}
    return last


def _created(stamp: str) -> str:
    s = stamp
    return f"{s[:4]}-{s[4:6]}-{s[6:8]}T{s[9:11]}:{s[11:13]}:{s[13:15]}" if s else ""


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


def _created_ns(run: RunFolder) -> int:
    created = (read_json(run.lock_file) or {}).get("created_ns")
    return created if isinstance(created, int) else 0


def _ambiguous(reference: str, found: list[RunFolder]) -> ConfigError:
    names = ", ".join(run.folder_name for run in found[:5])
    return ConfigError(
        f"{len(found)} runs begin with {printable(reference)}: {names}{', ...' if len(found) > 5 else ''}",
        hint=f"Name one by its folder, such as {found[0].folder_name}.",
    )


def _unknown(reference: str, runs: list[RunFolder], outputs: Path) -> ConfigError:
    if any(
        reference and os.path.isfile(place / SWEEP_FILE) for place in (outputs / SWEEPS / reference, Path(reference))
    ):
        name = printable(Path(reference).name)
        return ConfigError(f"{name} is a sweep; name a trial: {name}/1", hint=f"dlcli runs ls --sweep {name}")
    if not runs:
        hint = "Make one with: dlcli train digits  (or name their folder: --outputs DIR, $DLCLI_OUTPUTS)"
        return ConfigError(f"there is no run in {printable(outputs)}", hint=hint)
    names = [name for run in runs for name in (run.name, run.folder_name)]
    near = get_close_matches(reference, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The newest are: {', '.join(r.name for r in runs[:3])}."
    return ConfigError(f"there is no run {printable(reference)}", hint=f"{hint}  (dlcli runs ls)")


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
