"""The list of runs as a table that fits the window, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcli.reporting.format import is_share, metric_value
from dlcli.reporting.run_report import number, row_as_json
from dlcli.runs.facts import MISSING, RunFacts
from dlcli.runs.query import text_of

LISTS = (  # columns of the list of runs, from the widest window to the narrowest
    ("run", "experiment", "status", "epochs", "metrics", "created"),
    ("run", "experiment", "status", "epochs", "val", "test", "created"),
    ("run", "experiment", "status", "epochs", "val", "test", "date"),
    ("run", "experiment", "status", "val", "test", "date"),
    ("run", "experiment", "status", "val", "test", "day"),
    ("run", "experiment", "status", "val", "test"),
    ("run", "status", "val", "test"),
    ("run", "status", "val"),
)


def list_table(runs: Sequence[RunFacts], width: int, asked: Sequence[str] = ()) -> tuple[list[str], list[list[object]]]:
    """Columns and rows, of which each fits on one line of `width` characters: no cell is cut, columns are left out.

    asked: keys of a filter or an order that have a column of their own, unless they are among the others anyway.
    """
    shown = {name for run in runs for split in ("val/", "test/") if (name := _main_score(run, split))}
    more = [key for key in asked if key not in shown and key not in ("name", "experiment", "status", "created")]
    cells = [_list_cells(run) | {key: _asked_cell(run, key) for key in more} for run in runs]
    for names in LISTS:
        columns = [*names, *(key for key in more if key not in names)]
        rows = [[row[name] for name in columns] for row in cells]
        widths = [max(len(str(cell or "-")) for cell in column) for column in zip(columns, *rows, strict=True)]
        if sum(widths) + 2 * (len(columns) - 1) <= width:
            break
    return columns, rows


def json_row(run: RunFacts) -> dict[str, Any]:
    """A run as plain data; a group of seeds says so, with the deviations of its metrics, which are means."""
    if not run.num_seeds:
        return row_as_json(run.row)
    diverged = run.summary["diverged"] if run.num_diverged else []
    return row_as_json(run.row) | {"seeds": run.summary["seeds"], "diverged": diverged, "deviations": run.deviations}


def _list_cells(facts: RunFacts) -> dict[str, object]:
    """Return the content of each column; of the metrics, at most three of held-out data."""
    run = facts.row
    held_out = [name for name in run.metrics if not name.startswith("train/")] or list(run.metrics)
    return {
        "run": run.name,
        "experiment": run.experiment,
        "status": _status(facts),
        "epochs": run.epochs,
        "metrics": "  ".join(f"{name} {number(run.metrics[name])}{_spread(facts, name)}" for name in held_out[:3]),
        "val": _score(facts, "val/"),
        "test": _score(facts, "test/"),
        "created": run.created.replace("T", " "),
        "date": run.created.replace("T", " ")[5:16],
        "day": run.created[5:10],
    }


def _status(facts: RunFacts) -> str:
    if not facts.num_seeds:
        return facts.row.status
    ended = "" if facts.row.status == "completed" else f"{facts.row.status}, "
    diverged = f", {facts.num_diverged} diverged" if facts.num_diverged else ""
    return f"{ended}{facts.num_seeds} seeds{diverged}"


def _score(facts: RunFacts, split: str) -> str | None:
    """The accuracy on a split, else its first score with its name, as recorded at the best checkpoint."""
    name = _main_score(facts, split)
    if name is None:
        return None
    value, deviation = facts.row.metrics[name], facts.deviations.get(name)
    if not is_share(name):
        return f"{name.removeprefix(split)} {number(value)}{_spread(facts, name)}"
    shown = metric_value(name, value)
    return shown if deviation is None else shown.replace(" %", f" ± {100 * deviation:.2f} %")


def _main_score(facts: RunFacts, split: str) -> str | None:
    names = (name for name in facts.row.metrics if name.startswith(split))
    return min(names, key=lambda name: not name.endswith("accuracy"), default=None)


def _spread(facts: RunFacts, name: str) -> str:
    deviation = facts.deviations.get(name)
    return "" if deviation is None else f" ± {deviation:.2g}"


def _asked_cell(facts: RunFacts, key: str) -> object:
    value = facts.value(key)
    if value is MISSING or value is None:
        return None
    if key in facts.row.metrics:
        return metric_value(key, value) if is_share(key) else f"{number(value)}{_spread(facts, key)}"
    return f"{value:.1f}" if key == "seconds" else text_of(value)
