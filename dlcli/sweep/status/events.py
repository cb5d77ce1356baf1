"""The events of trials and of a sweep, as plain data: for displays, for --json, for summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlcli.sweep.status.reading import counts
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.ranking import front, ranked
from dlcli.sweep.study.trial_record import Record, trial_folder


def trial_event(folder: Path, definition: Definition, record: Record) -> dict[str, Any]:
    """The event of a trial. values: of a completed one only; no interim figure is ever a result."""
    return {
        "trial": record.number,
        "state": record.state,
        "overrides": definition.space.words(record.point),
        "point": record.point,
        "metrics": record.metrics if record.state == "completed" else {},
        "values": record.values if record.state == "completed" else None,
        "reason": record.reason,
        "seconds": record.seconds,
        "reuse_of": record.reuse_of,
        "run": str(trial_folder(folder, record.run_number)),
    }


def best_of(folder: Path, definition: Definition, record: Record) -> dict[str, Any]:
    """overrides: all words after the experiment, so that `dlcli train EXPERIMENT WORDS` makes the same run."""
    words = [word for word in definition.words_of(record.point) if "=" in word]
    return {
        "trial": record.number,
        "overrides": words,
        "metrics": record.metrics,
        "run": str(trial_folder(folder, record.run_number)),
    }


def summary(folder: Path, definition: Definition, records: list[Record], seconds: float | None) -> dict[str, Any]:
    """The `sweep_finished` event."""
    order = ranked(records, definition.objectives)
    event: dict[str, Any] = {
        "event": "sweep_finished",
        "sweep": str(folder),
        "best": best_of(folder, definition, order[0]) if order else None,
        "trials": counts(records),
        "name": definition.name,
        "seconds": seconds,
    }
    if len(definition.objectives) > 1:
        event["front"] = [best_of(folder, definition, record) for record in front(records, definition.objectives)]
    return event
