"""Removes and restores runs, and frees disk space: `dlcli runs rm`, `restore` and `prune`.

    outputs/.bin/<experiment>/<date-time>-<name>/     a removed run, whole; no list and no name finds it there

What is deleted for good is renamed first, so that a kill half-way leaves nothing that looks like a run or a checkpoint;
links are removed, never followed. A run is locked while it is changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from dlcli.errors import ConfigError, EnvironmentFault, nearest, printable
from dlcli.runs.disk import environment_fault
from dlcli.runs.facts import BIN, RunFacts, binned_runs, folders, gather, sweep_trials
from dlcli.runs.find import checkpoint_steps, find_run
from dlcli.runs.folder import SWEEPS, RunFolder
from dlcli.runs.query import parse_query, select

FINISHED = ("completed", "failed", "pruned")
CHECKPOINT, WEIGHTS, LEFT_OVER, REMOVED = "old checkpoint", "checkpoint", "left over by a kill", "in the bin"
_LEFT_OVER = re.compile(r"\.(tmp|old)-.+|\..+\.\d+\.tmp")  # of a checkpoint's save; of write_atomically
_AGE = re.compile(r"(\d{1,5})([hdw])")


@dataclass(frozen=True)
class Moved:
    """A run that was put in the bin, or brought back."""

    run: RunFolder
    path: Path


@dataclass(frozen=True)
class Waste:
    """A piece that `prune` would delete. run: its run; kind: what it is; size: bytes."""

    run: RunFolder
    kind: str
    path: Path
    size: int


# ------------------------------------------------------------------------------------------------ away, and back again


def remove(references: Sequence[str], outputs: Path) -> list[Moved]:
    """Move runs into the bin: all of them, or none when one is running or not to be had.

    Errors: ConfigError for a name that no run has, or a part of a run; EnvironmentFault for a run that is active.
    """
    runs = {run.path: run for run in (_whole(find_run(reference, outputs), outputs) for reference in references)}
    moves = [Moved(run, outputs / BIN / run.experiment / run.folder_name) for run in runs.values()]
    with _held(list(runs.values())):
        return _move(moves, "it is in the bin already; delete that with: dlcli runs prune")


def restore(references: Sequence[str], outputs: Path) -> list[Moved]:
    """Move runs out of the bin, to where they were: all of them, or none when a folder lies there by now.

    Errors: ConfigError for a name that no removed run has, and for a place that is taken; EnvironmentFault for a run
    that is active there.
    """
    runs = {run.path: run for run in (find_removed(reference, outputs) for reference in references)}
    moves = [Moved(run, outputs / run.experiment / run.folder_name) for run in runs.values()]
    with _held([run for run in runs.values() if not run.path.is_symlink()]):
        return _move(moves, "a run lies there; rename one of the two folders")


def find_removed(reference: str, outputs: Path) -> RunFolder:
    """A run in the bin, by path (there or where it was), folder name, name, unique beginning, or `latest`."""
    there = binned_runs(outputs)
    if not there:
        raise ConfigError(
            f"the bin is empty: {printable(outputs / BIN)}", hint="The runs that are not removed: dlcli runs ls"
        )
    path = Path(reference)
    there = [run for run in there if "/" not in reference or run.experiment == path.parent.name]
    for run in there:
        if reference == "latest" or path.name in (run.folder_name, run.name):
            return run
    found = [
        run for run in there if path.name and (run.name.startswith(path.name) or run.folder_name.startswith(path.name))
    ]
    if len(found) == 1:
        return found[0]
    names = [run.folder_name for run in found] or [run.name for run in there]
    message = f"{len(found)} removed runs begin with" if found else "the bin has no run"
    better = None if found else nearest(reference, names)
    hint = f"Did you mean {better}?" if better else f"There are: {', '.join(names[:5])}."
    raise ConfigError(f"{message} {printable(reference)}", hint=f"{hint}  (dlcli runs ls --bin)")


def check_not_removed(run: RunFolder) -> None:
    """Raise ConfigError for a run in the bin, or one of its seeds: what is trained there is pruned."""
    run = RunFolder(Path(os.path.abspath(run.path)))
    if run.outputs.name == BIN:
        whole = run.path.parent if run.is_member else run.path
        message = f"{printable(run.name)} was removed: it lies in {printable(run.outputs)}"
        raise ConfigError(message, hint=f"Restore it first:  dlcli runs restore {printable(whole.name)}")


@contextlib.contextmanager
def _held(runs: Sequence[RunFolder]) -> Iterator[None]:
    """Lock runs and all within them; EnvironmentFault where one is active."""
    with ExitStack() as held:
        for run in runs:
            for part in (run, *members(run)):
                held.enter_context(part)
        yield


def members(run: RunFolder) -> list[RunFolder]:
    """The runs within a group of seeds."""
    return [RunFolder(path) for path in folders(run.path) if path.name.startswith("seed-")]


def _whole(run: RunFolder, outputs: Path) -> RunFolder:
    """ConfigError for a trial of a sweep, a member of a group, and what lies elsewhere."""
    place = Path(os.path.abspath(run.path)).parent.parent
    if run.is_member:
        raise ConfigError(
            f"{printable(run.name)} is a part of {printable(run.path.parent.name)}, which would miss it",
            hint=f"The whole is the folder {printable(run.path.parent)}.",
        )
    if place != Path(os.path.abspath(outputs)):
        raise ConfigError(
            f"{printable(run.path)} does not lie in {printable(outputs)}", hint=f"Add: --outputs {printable(place)}"
        )
    return run


def _move(moves: Sequence[Moved], taken: str) -> list[Moved]:
    for move in moves:
        if os.path.lexists(move.path):
            raise ConfigError(f"{printable(move.path)}: {taken}")
    done: list[Moved] = []
    for move in moves:
        try:
            move.path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(move.run.path, move.path)
        except OSError as error:
            for earlier in done:
                os.rename(earlier.path, earlier.run.path)
            raise _unmoved(error, move) from error
        done.append(move)
    for move in moves:
        if move.run.path.parent.parent.name == BIN:
            _tidy(move.run)
    return done


def _tidy(removed: RunFolder) -> None:
    """Take away the bin's folder of an experiment once it is empty, and then the bin's."""
    with contextlib.suppress(OSError):  # others lie there still
        removed.path.parent.rmdir()
        removed.path.parent.parent.rmdir()


def _unmoved(error: OSError, move: Moved) -> EnvironmentFault:
    if error.errno == errno.EXDEV:
        message = f"{printable(move.run.path)} lies on another disk than {printable(move.path.parent)}"
        return EnvironmentFault(message, hint="Move or delete the folder by hand.")
    fault = environment_fault(error, move.run.path, "the run cannot be moved")
    return EnvironmentFault(
        fault.message, hint=f"It would go to {printable(move.path)}. Check that you may write there:  ls -ld"
    )


# ---------------------------------------------------------------------------------------------------------------- waste


def find_waste(
    outputs: Path,
    words: Sequence[str] = (),
    *,
    older_than: str | None = None,
    sweep: str | None = None,
    weights: bool = False,
) -> list[Waste]:
    """List what could be deleted, the largest first: removed runs, checkpoints without a link, leftovers of kills.

    A checkpoint that another run is taught from stays.
    words: a filter of runs, as in `dlcli runs ls`. older_than: `30d`, since their creation. sweep: of its trials, not
    of the runs. weights: all checkpoints of the finished ones.
    Errors: ConfigError for a filter or an age that is none, and for `weights` without a filter.
    """
    if weights and not words:
        hint = 'Name an experiment or a condition:  dlcli runs prune "val/accuracy<0.9" --weights'
        raise ConfigError("--weights deletes all checkpoints; it needs a filter of runs", hint=hint)
    runs = gather(outputs, sweep=sweep)
    removed = [] if sweep else gather(outputs, in_bin=True)
    before = _moment(older_than) if older_than else None
    chosen = select([*runs, *removed], parse_query(words)).runs
    chosen = [run for run in chosen if before is None or "" < run.row.created < before]
    is_removed = {run.run.path for run in removed}
    found: list[Waste] = []
    for facts in chosen:
        found += _of_removed(facts) if facts.run.path in is_removed else _of_run(facts, weights)
    found = _not_taught_from(found, outputs)
    if not words and before is None and not sweep:
        found += [_waste(RunFolder(path), LEFT_OVER, path) for path in _half_deleted(outputs)]
    return sorted(found, key=lambda waste: -waste.size)


def free(found: Sequence[Waste]) -> None:
    """Delete it for good. EnvironmentFault if it cannot be deleted, or if its run has started since."""
    for waste in found:
        if not os.path.lexists(waste.path):  # somebody else was faster
            continue
        with ExitStack() as held:
            if waste.path != waste.run.path:
                held.enter_context(RunFolder(waste.run.path))
            elif waste.kind == REMOVED and not waste.path.is_symlink():
                held.enter_context(_held([RunFolder(waste.run.path)]))
            if waste.kind == CHECKPOINT and waste.path.name in _named(waste.run):
                continue  # trained further since it was looked at
            if waste.kind == WEIGHTS:
                _unlink_names(waste.run, waste.path.name)
            _delete(waste.path)
        if waste.kind == REMOVED:
            _tidy(waste.run)


def waste_table(found: Sequence[Waste]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: one for each run and kind of waste."""
    groups: dict[tuple[str, str], list[Waste]] = {}
    for waste in found:
        groups.setdefault((waste.run.name, waste.kind), []).append(waste)
    rows = [
        [name, kind, len(parts), f"{sum(part.size for part in parts) / 1e6:,.1f}"]
        for (name, kind), parts in groups.items()
    ]
    return ["run", "what", "number", "MB"], [list(row) for row in rows]


def _of_removed(facts: RunFacts) -> Iterator[Waste]:
    """A run in the bin, unless somebody trains it there, by its path."""
    if facts.row.status != "running" and not any(member.is_locked() for member in members(facts.run)):
        yield _waste(facts.run, REMOVED, facts.run.path)


def _not_taught_from(found: list[Waste], outputs: Path) -> list[Waste]:
    """Without the checkpoints that a run, a trial or a removed run names as its `task.teacher`."""
    if not any(waste.kind in (CHECKPOINT, WEIGHTS) for waste in found):
        return found
    trials = [run for sweep in folders(outputs / SWEEPS) for run in sweep_trials(outputs, sweep.name)]
    every = [*gather(outputs), *gather(outputs, in_bin=True), *map(RunFacts, trials)]
    teachers = {teacher for run in every if isinstance(teacher := run.value("task.teacher"), str)}
    taught_from = {os.path.realpath(teacher) for teacher in teachers}
    return [
        waste
        for waste in found
        if waste.kind not in (CHECKPOINT, WEIGHTS) or os.path.realpath(waste.path) not in taught_from
    ]


def _of_run(facts: RunFacts, weights: bool) -> Iterator[Waste]:
    """The waste of a run and of its seeds; none of one that is running, no checkpoints of one that may go on."""
    if facts.row.status == "running" or facts.run.path.is_symlink():
        return
    run, is_finished = facts.run, facts.row.status in FINISHED
    places = (run.path, run.checkpoints)
    yield from (_waste(run, LEFT_OVER, path) for place in places for path in _left_over(place))
    if is_finished:
        kind = WEIGHTS if weights else CHECKPOINT
        yield from (_waste(run, kind, path) for path in _checkpoints(run, kept=set() if weights else _named(run)))
    for member in members(run):
        yield from _of_run(RunFacts(member), weights and is_finished)


def _checkpoints(run: RunFolder, kept: set[str]) -> list[Path]:
    if run.checkpoints.is_symlink():
        return []
    steps = [path for path in checkpoint_steps(run) if path.is_dir() and not path.is_symlink()]
    return [path for path in steps if path.name not in kept]


def _named(run: RunFolder) -> set[str]:
    """The checkpoints that `best` and `last` name; where `last` names none, the newest stays too."""
    names = {}
    for link in ("best", "last"):
        with contextlib.suppress(OSError):
            names[link] = os.path.basename(os.readlink(run.checkpoints / link))
    steps = [path.name for path in checkpoint_steps(run)]
    return set(names.values()) | (set() if names.get("last") in steps else set(steps[-1:]))


def _left_over(place: Path) -> list[Path]:
    if place.is_symlink():
        return []
    try:
        return [place / name for name in sorted(os.listdir(place)) if _LEFT_OVER.fullmatch(name)]
    except OSError:
        return []


def _half_deleted(outputs: Path) -> list[Path]:
    """Runs whose deletion was killed."""
    return [path for experiment in folders(outputs / BIN) for path in _left_over(experiment)]


def _waste(run: RunFolder, kind: str, path: Path) -> Waste:
    return Waste(run, kind, path, _size(path))


def _size(path: Path) -> int:
    """Bytes of a file, a link, or all that is in a folder."""
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
        return sum(_size(path / name) for name in os.listdir(path))
    except OSError:
        return 0


def _moment(age: str) -> str:
    """Return the time so long ago, in the form that runs record."""
    match = _AGE.fullmatch(age)
    if match is None:
        raise ConfigError(
            f'--older-than must be an age, got "{printable(age)}"', hint="Write hours, days or weeks: 12h, 30d, 8w."
        )
    hours = int(match[1]) * {"h": 1, "d": 24, "w": 168}[match[2]]
    return (datetime.now() - timedelta(hours=hours)).isoformat(timespec="seconds")


def _unlink_names(run: RunFolder, step: str) -> None:
    for link in ("best", "last"):
        with contextlib.suppress(OSError):
            if os.path.basename(os.readlink(run.checkpoints / link)) == step:
                (run.checkpoints / link).unlink()


def _delete(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        hidden = path if path.name.startswith(".") else path.with_name(f".old-{path.name}-{os.getpid()}")
        if hidden != path:
            os.rename(path, hidden)
        shutil.rmtree(hidden)
    except FileNotFoundError:  # somebody else was faster
        return
    except OSError as error:
        fault = environment_fault(error, path, "cannot be deleted")
        raise EnvironmentFault(fault.message, hint="See who may write there:  ls -ld") from error
