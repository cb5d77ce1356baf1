"""Runs, groups of seeds, sweeps and checkpoints: found by name, by path, or as `latest`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dlcli.errors import CheckpointError, ConfigError, nearest, printable
from dlcli.runs.disk import read_json
from dlcli.runs.folder import SWEEP_FILE, SWEEPS, RunFolder, _folders, _is_run
from dlcli.runs.folder import SWEEP_FILE as FILE

_STEP_FOLDER = re.compile(r"step-\d+")

_OTHER_RUN = "See what there is with: dlcli runs ls"


# -------------------------------------------------------------------------------------------------------------- finding


def outputs_folder(option: str | None = None) -> Path:
    """Return the folder of the runs: the option, else $DLCLI_OUTPUTS, else ./outputs."""
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
    """Return the newest run that has a checkpoint; if none has one, the newest run, which the error then names."""
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


# -------------------------------------------------------------------------------------------------------------- finding


def sweeps_folder(outputs: Path) -> Path:
    return outputs / SWEEPS


def all_sweeps(outputs: Path) -> list[Path]:
    """Every sweep's folder, the newest first."""
    found = [path.parent for path in sweeps_folder(outputs).glob(f"*/{FILE}") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda folder: (str((read_json(folder / FILE) or {}).get("created")), folder.name))[::-1]


def find_sweep(reference: str | None, outputs: Path) -> Path:
    """A sweep's folder by path, name or the unique beginning of one; None and `latest` are the newest.

    ConfigError when none or several answer to it.
    """
    if reference not in (None, "latest"):
        for path in (Path(reference).expanduser(), sweeps_folder(outputs) / reference):
            if (path / FILE).is_file():
                return path.absolute()
    sweeps = all_sweeps(outputs)
    if not sweeps:
        hint = "Start one with: dlcli sweep digits optimizer.lr=1e-4:1e-1:log --trials 8   (or name its --outputs)"
        raise ConfigError(f"there is no sweep in {printable(sweeps_folder(outputs))}", hint=hint)
    if reference in (None, "latest"):
        return sweeps[0].absolute()
    found = [folder for folder in sweeps if folder.name.startswith(reference)]
    if len(found) == 1:
        return found[0].absolute()
    names = ", ".join(folder.name for folder in (found or sweeps)[:5])
    if found:
        raise ConfigError(f"{len(found)} sweeps begin with {printable(reference)}: {names}", hint="Name one of them.")
    better = nearest(reference, [folder.name for folder in sweeps], cutoff=0.5)
    hint = f"Did you mean {better}?" if better else f"The newest are: {names}."
    raise ConfigError(f"there is no sweep {printable(reference)}", hint=hint)
