"""What the commands of a sweep call: start one, go on with one, join one."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dlcli.errors import ConfigError, EnvironmentFault, printable
from dlcli.reporting.display import JsonDisplay
from dlcli.reporting.output import is_terminal
from dlcli.reporting.wandb_tracker import require_online, resolve_mode
from dlcli.runs.events import Display, Silent
from dlcli.runs.find import all_sweeps, find_checkpoint, find_sweep, sweeps_folder
from dlcli.runs.names import candidates, checked_name
from dlcli.sweep.ledger.address import VARIABLE, checked_address, without_password
from dlcli.sweep.request import Asked, Request, read_request
from dlcli.sweep.status.events import trial_event
from dlcli.sweep.status.reading import Reader, open_reader
from dlcli.sweep.study.definition import FILE, Definition, read_definition
from dlcli.sweep.workers.launchers import Launch, read_launch
from dlcli.sweep.workers.local import default_workers
from dlcli.sweep.workers.overseer import Overseer


def start(words: Sequence[str], request: Request, *, outputs: Path, dry_run: bool, as_json: bool) -> int:
    command = shlex.join(["dlcli", "sweep", *words, *request.flags()])
    words, launch = read_launch(words)
    address = _address(request.storage)
    request = replace(request, storage=address and without_password(address))
    asked = read_request(
        words, request, device_is_cpu=launch.is_on_cpu(), workers=default_workers(), threads=launch.threads
    )
    workers = asked.workers
    if dry_run:
        from dlcli.sweep.dry_run import show

        return show(asked, workers=workers, as_json=as_json)
    launch.check()
    mode = _tracker_mode(asked)
    asked = replace(asked, definition=_with_teacher(asked, outputs))
    definition = replace(
        asked.definition,
        launcher=launch.as_dict(workers),
        created=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        command=command,
    )
    taken = _shared_names(address) if address else []
    folder, definition = _make_folder(outputs.absolute(), definition, request.name, taken)
    message = f"W&B: offline in the trials' folders; upload with: dlcli sync {definition.name}"
    notes = [*asked.notes, *([message] if mode == "offline" else [])]
    return _oversee(folder, definition, workers, address, launch, as_json=as_json, notes=notes)


def _tracker_mode(asked: Asked) -> str:
    """online, offline or disabled. TrackerError before anything starts where it is asked for and cannot be."""
    settings = asked.composed.tree["tracker"]
    if settings["name"] == "none":
        return "disabled"
    if settings["mode"] == "online":
        require_online()
    return resolve_mode() if settings["mode"] == "auto" else str(settings["mode"])


def _with_teacher(asked: Asked, outputs: Path) -> Definition:
    """The checkpoint that task.teacher names now, for all trials: `latest` may be another one soon."""
    teacher = asked.composed.tree["task"].get("teacher")
    if teacher is None or any(axis.key == "task.teacher" for axis in asked.definition.axes):
        return asked.definition
    words = [word for word in asked.definition.words if not word.startswith("task.teacher=")]
    return replace(asked.definition, words=(*words, f"task.teacher='{find_checkpoint(teacher, outputs).resolve()}'"))


def resume(
    name: str, *, outputs: Path, trials: int | None, workers: int | None, storage: str | None, as_json: bool
) -> int:
    folder = find_sweep(name, outputs)
    definition = read_definition(folder)
    address = _address(storage) or definition.storage
    launch = Launch.from_dict(definition.launcher)
    launch.check()
    if trials is not None:
        definition = _extended(definition, trials)
        definition.write(folder)
    from dlcli.sweep.ledger.opening import open_ledger

    ledger = open_ledger(folder, definition, storage=address)
    with ledger.exclusively():
        ledger.reap()
        if ledger.paused():
            ledger.pause(None)
    count = workers or definition.launcher.get("workers") or default_workers()
    return _oversee(folder, definition, count, address, launch, as_json=as_json, resumed=True)


def join(name: str, *, outputs: Path, workers: int | None, storage: str | None, as_json: bool) -> int:
    """The folder, where this machine sees it; otherwise one is made here, for what is trained here."""
    address = _address(storage)
    exact = sweeps_folder(outputs.absolute()) / name
    if storage and not (exact / FILE).is_file():
        folder = _folder_here(name, address or storage, outputs)
    else:
        try:
            folder = find_sweep(name, outputs)
        except ConfigError:
            if address is None:
                raise
            folder = _folder_here(name, address, outputs)
    if storage and read_definition(folder).storage is None:
        message = f"{printable(folder)} is another sweep, with a ledger of its own"
        raise ConfigError(message, hint="Name another place for what is trained here: --outputs DIR")
    definition = read_definition(folder)
    count = workers or default_workers()
    address = address or definition.storage
    return _oversee(folder, definition, count, address, Launch(), as_json=as_json, resumed=True)


def watch(name: str, *, outputs: Path, storage: str | None, as_json: bool) -> None:
    """Look on until the sweep is finished."""
    from dlcli.sweep.status import telling
    from dlcli.sweep.status.progress import status

    folder = find_sweep(name, outputs)
    reader = open_reader(folder, read_definition(folder), _address(storage))
    workers = status(reader, reader.records())["workers"]
    telling.watch(reader, open_sweep_display(reader, as_json=as_json), workers)


def _folder_here(name: str, address: str, outputs: Path) -> Path:
    """The folder of a sweep that only its ledger knows."""
    from dlcli.sweep.ledger.shared import shared_definition

    definition = shared_definition(name, address)
    folder = sweeps_folder(outputs.absolute()) / checked_name(definition.name, "sweep")
    folder.mkdir(parents=True, exist_ok=True)
    replace(definition, storage=without_password(address)).write(folder)
    return folder


def _oversee(
    folder: Path,
    definition: Definition,
    workers: int,
    address: str | None,
    launch: Launch,
    *,
    as_json: bool,
    resumed: bool = False,
    notes: Sequence[str] = (),
) -> int:
    display: Display = Silent()
    try:
        reader = open_reader(folder, definition, address)
        display = open_sweep_display(reader, as_json=as_json)
        for note in notes:
            display.event({"event": "note", "message": note})
        started = launch.workers(folder, workers, address)
        return Overseer(folder, reader.definition, reader, display, started).execute(resumed=resumed)
    except EnvironmentFault as error:
        error.hint = f"{error.hint or 'Mend it.'} Then: dlcli sweep resume {definition.name}"
        raise
    finally:
        display.close()


def _address(option: str | None) -> str | None:
    address = option or os.environ.get(VARIABLE)
    return checked_address(address) if address else None


def _shared_names(address: str) -> list[str]:
    """Asked before anything is written: without a server, or its driver, no sweep begins."""
    from dlcli.sweep.ledger.shared import shared_names

    return shared_names(address)


def _extended(definition: Definition, trials: int) -> Definition:
    if trials < definition.trials:
        message = f"--trials {trials}: the sweep has {definition.trials} already, and none is taken away"
        raise ConfigError(message, hint=f"--trials {definition.trials + 10} adds ten.")
    if definition.sampler == "grid" and trials > (size := len(definition.space.grid())):
        raise ConfigError(f"--trials {trials}: the grid has {size} points", hint=f"--trials {size}")
    return replace(definition, trials=trials)


def _make_folder(
    outputs: Path, definition: Definition, name: str | None, taken_elsewhere: Sequence[str] = ()
) -> tuple[Path, Definition]:
    """A folder that no other sweep has: `mnist-brave-heron`."""
    parent = sweeps_folder(outputs)
    if name is not None and checked_name(name, "name") in ("latest",):
        raise ConfigError(f"a sweep cannot be called {name}", hint="The word means the newest one.")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if name in taken_elsewhere:
            hint = f"dlcli sweep join {name} --storage ... helps with it; --name {name}-2 is another."
            raise ConfigError(f"the ledger has a sweep {printable(name)} already", hint=hint)
        taken = {folder.name for folder in all_sweeps(outputs)}
        if name in taken:
            hint = f"dlcli sweep resume {name} goes on with it; --name {name}-2 is another."
            raise ConfigError(f"there is a sweep {printable(name)} already", hint=hint)
        prefix = checked_name(definition.experiment.replace("/", "-"), "experiment")
        for word in [name] if name else (f"{prefix}-{drawn}" for drawn in candidates(None, set())):
            if word in taken_elsewhere:
                continue
            folder = parent / word
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            definition = replace(definition, name=word)
            definition.write(folder)
            return folder, definition
    except OSError as error:
        from dlcli.runs.disk import environment_fault

        raise environment_fault(error, parent, "the sweep's folder cannot be made") from error
    raise EnvironmentFault(f"{printable(parent / str(name))} is in the way", hint="Choose another --name.")


def open_sweep_display(reader: Reader, *, as_json: bool) -> Display:
    """A live table, which also shows the trials that are there already, or lines of news."""
    if as_json:
        return JsonDisplay(sys.stdout)
    from dlcli.sweep.status.display import LiveSweep, PlainSweep

    if not is_terminal(sys.stdout):
        return PlainSweep(sys.stdout, sys.stderr)
    known = [trial_event(reader.folder, reader.definition, record) for record in reader.records()]
    return LiveSweep(sys.stdout, known)
