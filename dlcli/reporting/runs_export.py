"""The runs as one table for other programs and for papers: CSV, one JSON array, or Markdown; a row is a run."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcli.errors import ConfigError, EnvironmentFault, printable
from dlcli.reporting.run_report import number
from dlcli.runs.disk import write_atomically
from dlcli.runs.facts import RunFacts

NESTED = ("choices", "metrics", "deviations")
FORMATS = {"csv": ".csv", "json": ".json", "markdown": ".md"}


def export(runs: Sequence[RunFacts], form: str) -> str:
    """The text of a table. form: csv, json, markdown, or json lines."""
    if form == "json":
        return json.dumps([as_data(run) for run in runs], indent=1, default=str) + "\n"
    if form == "json lines":
        return "".join(json.dumps(as_data(run), default=str) + "\n" for run in runs)
    columns, rows = _flat([as_data(run) for run in runs])
    return _as_csv(columns, rows) if form == "csv" else _as_markdown(columns, rows)


def chosen_format(given: str | None, to: Path | None) -> str:
    """The format that is named, else that of the file's ending, else csv. ConfigError for one that is none."""
    if given is None:
        return next((form for form, ending in FORMATS.items() if to is not None and to.suffix == ending), "csv")
    if given not in FORMATS:
        raise ConfigError(f"there is no format {printable(given)}", hint=f"Say --format {' or '.join(FORMATS)}.")
    return given


def write(text: str, to: Path) -> None:
    """Write a table to a file, whole or not at all."""
    try:
        write_atomically(to, text.encode("utf-8", "backslashreplace"))
    except EnvironmentFault as fault:
        raise EnvironmentFault(
            fault.message, hint="Name another file with --to FILE, in a folder that exists."
        ) from fault


def as_data(run: RunFacts) -> dict[str, Any]:
    """All that is exported of a run; `seeds` and `deviations` of a group of seeds, whose metrics are means."""
    row = run.row
    data: dict[str, Any] = {
        "name": row.name,
        "experiment": row.experiment,
        "status": row.status,
        "created": row.created,
        "seconds": run.seconds,
        "epochs": row.epochs,
        "overrides": run.overrides,
        "choices": run.choices,
        "metrics": row.metrics,
    }
    return data | ({"seeds": run.summary["seeds"], "deviations": run.deviations} if run.num_seeds else {})


# -------------------------------------------------------------------------------------------------------------- tables


def _flat(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: one column for each group, metric and deviation that any run has."""
    flat = [_flat_row(run) for run in runs]
    plain = ["name", "experiment", "status", "created", "seconds", "epochs", "seeds", "overrides"]
    names = dict.fromkeys(name for kind in NESTED for run in runs for name in _of(run, kind))
    columns = [name for name in plain if name != "seeds" or any("seeds" in run for run in runs)] + list(names)
    return columns, [[row.get(column) for column in columns] for row in flat]


def _of(run: dict[str, Any], kind: str) -> dict[str, Any]:
    """The columns of a kind: a metric whose deviation is known has a second one."""
    suffix = " ±" if kind == "deviations" else ""
    return {f"{name}{suffix}": value for name, value in run.get(kind, {}).items()}


def _flat_row(run: dict[str, Any]) -> dict[str, Any]:
    nested = {name: value for kind in NESTED for name, value in _of(run, kind).items()}
    seeds = {"seeds": len(run["seeds"])} if "seeds" in run else {}
    return nested | run | seeds | {"overrides": shlex.join(run["overrides"])}


def _as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # floats to the last digit, None as nothing
    return text.getvalue()


def _as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    right = [_is_numeric(column) for column in zip(*rows, strict=True)] or [False] * len(columns)
    lines = [columns, ["---:" if is_right else "---" for is_right in right]]
    lines += [[_markdown_cell(value) for value in row] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in values)


def _markdown_cell(value: Any) -> str:
    text = "" if value is None else number(value) if isinstance(value, float) else str(value)
    return printable(text.replace("\n", " "), limit=2000).replace("\\", "\\\\").replace("|", "\\|")
