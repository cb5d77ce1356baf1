"""How far a sweep is, as plain data from its folders: counts, who works on what, and when it will be finished.

Neither torch nor Optuna is imported, unless nothing goes on and the ledger has to say why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dlcli.runs.folder import RunFolder
from dlcli.sweep.ledger.heartbeat import is_alive_here, is_here
from dlcli.sweep.status.events import best_of
from dlcli.sweep.status.reading import Reader, counts
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.ranking import ranked
from dlcli.sweep.study.trial_record import Record, trial_folder

HEAD_BYTES, TAIL_BYTES = 131_072, 16_384  # of a trial's events: the first ones, and its last epoch


def status(reader: Reader, records: Sequence[Record]) -> dict[str, Any]:
    """The `sweep_status` event."""
    definition = reader.definition
    finished = [record for record in records if record.is_finished]
    running = [at_work(reader.folder, record) for record in records if record.state == "running"]
    order = ranked(records, definition.objectives)
    is_finished = len(finished) >= definition.trials and len(finished) == len(records)
    goes_on = any(trial["alive"] is not False for trial in running)
    return {
        "event": "sweep_status",
        "sweep": str(reader.folder),
        "name": definition.name,
        "experiment": definition.experiment,
        "of": definition.trials,
        "finished": len(finished),
        "trials": counts(records),
        "waiting": sum(record.state == "waiting" for record in records),
        "running": running,
        "best": best_of(reader.folder, definition, order[0]) if order else None,
        **_forecast(definition, finished, running),
        "paused": None if is_finished or goes_on else reader.paused(),
        "next": _next(definition, is_finished=is_finished, goes_on=goes_on),
    }


def at_work(folder: Path, record: Record) -> dict[str, Any]:
    """Who has a trial, since when, and how far it is.

    alive: None for a worker on another machine: its heartbeat would have to be watched for a while.
    """
    worker = record.worker
    epoch, epochs = epochs_of(RunFolder(trial_folder(folder, record.number)))
    return {
        "trial": record.number,
        "point": record.point,
        "host": worker.get("host"),
        "pid": worker.get("pid"),
        "worker": worker.get("id"),
        "alive": is_alive_here(worker) if is_here(worker) else None,
        "started": record.started,
        "epoch": epoch,
        "epochs": epochs,
    }


def epochs_of(run: RunFolder) -> tuple[int | None, int | None]:
    """How many epochs are done, of how many; None for what the events do not say."""
    try:
        with run.events.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            tail = file.read()
    except OSError:
        return None, None
    prepared = _last(head, b'{"event": "run_prepared"') or {}
    last = _last(tail, b'{"event": "epoch"') or {}
    return last.get("epoch"), prepared.get("epochs")


def _last(lines: bytes, beginning: bytes) -> dict[str, Any] | None:
    """The last whole event that begins so."""
    for line in reversed(lines.splitlines()):
        if line.startswith(beginning):
            try:
                event = json.loads(line)
            except ValueError:  # cut off, or being written
                continue
            return event if isinstance(event, dict) else None
    return None


def _forecast(
    definition: Definition, finished: Sequence[Record], running: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """mean_s: of what was trained, to its end or not; until: when all is finished, if nothing changes."""
    times = [record.seconds for record in finished if record.seconds and record.reuse_of is None]
    mean_s = sum(times) / len(times) if times else None
    workers = len({trial["worker"] for trial in running if trial["alive"] is not False})
    facts: dict[str, Any] = {"workers": workers, "mean_s": mean_s, "left_s": None, "until": None}
    if mean_s is None or not workers:
        return facts
    begun = sum(_share(trial) for trial in running)
    left_s = mean_s * max(definition.trials - len(finished) - begun, 0.0) / workers
    until = datetime.now().astimezone() + timedelta(seconds=left_s)
    return facts | {"left_s": left_s, "until": until.isoformat(timespec="seconds")}


def _share(trial: Mapping[str, Any]) -> float:
    """How much of a running trial is done."""
    epoch, epochs = trial["epoch"], trial["epochs"]
    return min(epoch / epochs, 1.0) if epoch and epochs else 0.0


def _next(definition: Definition, *, is_finished: bool, goes_on: bool) -> list[str]:
    resume = [] if is_finished or goes_on else [f"dlcli sweep resume {definition.name}"]
    return [*resume, f"dlcli sweep top {definition.name}"]
