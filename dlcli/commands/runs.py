"""`dlcli runs`: list and filter them, show one, remove and restore, free disk, export a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dlcli.runs.facts import RunFacts
    from dlcli.runs.query import Query
    from dlcli.runs.trash import Moved, Waste

app = typer.Typer(no_args_is_help=True, help="List and filter runs, show one, remove, restore, free disk, export.")

Outputs = Annotated[str | None, typer.Option("--outputs", help="Where the runs lie.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[EXPERIMENT] [FILTER]...",
        help='An experiment, and conditions KEY OP VALUE in quotes: "val/accuracy>0.98 model=lenet5 seed<3". '
        "OP: = != > >= < <= ~ (contains). KEY: metric, group, config key, name, status, created, seconds, epochs.",
    ),
]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs: name, folder, the beginning of one, latest.")]
Sort = Annotated[
    str | None,
    typer.Option("--sort", help="By a key: metrics best first, all else from small to large; -KEY turns it round."),
]
Sweep = Annotated[
    str | None, typer.Option("--sweep", help="The trials of this sweep (or latest), instead of the runs.")
]


@app.command("ls")
def ls(
    words: Words = None,
    sort: Sort = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="The first so many; 0 for all.", min=0)] = 20,
    in_bin: Annotated[bool, typer.Option("--bin", help="The removed runs, instead of the others.")] = False,
    sweep: Sweep = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, newest first, or those that a filter means: name, experiment, status, epochs and metrics.

    Example: dlcli runs ls "val/accuracy>0.5 model=mlp" --sort val/accuracy
    """
    from dlcli.runs.facts import gather
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.query import parse_query, select

    query, folder = parse_query(words or ()), outputs_folder(outputs)
    every = gather(folder, in_bin=in_bin, sweep=sweep)
    selection = select(every, query, sort)
    shown = selection.runs[: limit or None]
    _print_list(shown, folder, selection.asked, as_json=as_json)
    if not as_json and not shown:
        typer.echo(_nothing(every, query, folder, in_bin=in_bin), err=True)
    elif not as_json and len(shown) < len(selection.runs):
        typer.echo(f"{len(selection.runs) - len(shown)} more: add --limit 0", err=True)


def _print_list(runs: Sequence[RunFacts], folder: Path, asked: Sequence[str], *, as_json: bool) -> None:
    import os
    import sys

    from dlcli.reporting.output import is_terminal, width_of
    from dlcli.reporting.runs_table import json_row, list_table
    from dlcli.reporting.tables import print_table

    json_rows = [json_row(run) for run in runs] if as_json else None
    is_narrow = is_terminal(sys.stdout) or "COLUMNS" in os.environ  # a file or a pipe gets every column
    columns, cells = list_table(runs, width_of(sys.stdout) if is_narrow else 10_000, asked)
    print_table(f"Runs in {folder}", columns, cells, json_rows=json_rows)


def _nothing(every: Sequence[RunFacts], query: Query, folder: Path, *, in_bin: bool) -> str:
    """What an empty list means."""
    from dlcli.runs.query import why_none

    if not every:
        return f"the bin of {folder} is empty" if in_bin else f"no runs in {folder}; make one with: dlcli train digits"
    of = f" of {query.experiment}" if query.experiment else ""
    if not query.conditions:
        return f"no runs{of} in {folder}; make one with: dlcli train {query.experiment or 'digits'}"
    why = why_none(every, query)
    conditions = " ".join(map(str, query.conditions))
    return f"no run{of} has {conditions}" + (f": {why}" if why else "")


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="A run: its name, folder, the beginning of one, or latest.")] = "latest",
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Show one run: its choices, metrics, epochs, checkpoints, and what to do next.

    Example: dlcli runs show latest
    """
    import json

    from dlcli.reporting.run_report import describe_run
    from dlcli.runs.find import find_run, outputs_folder

    report = describe_run(find_run(run, outputs_folder(outputs)))
    if as_json:
        typer.echo(json.dumps(report, default=str))
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    from dlcli.reporting.run_report import EPOCHS_SHOWN, epoch_table, fact_rows, metric_rows, seed_table, spread_rows
    from dlcli.reporting.tables import print_table

    print_table(report["name"], ["run", report["name"]], fact_rows(report))
    if report.get("seeds"):
        typer.echo()
        print_table("Metrics", ["metric", "mean ± sd", "95 % interval of the mean"], spread_rows(report))
        typer.echo()
        print_table("Seeds", *seed_table(report))
    elif metrics := metric_rows(report):
        typer.echo()
        print_table("Metrics", ["metric", "value", "over the epochs"], metrics)
    if report["epochs"]:
        columns, rows = epoch_table(report["epochs"])
        typer.echo()
        last = f"The last {EPOCHS_SHOWN} epochs{', and the best' if len(rows) > EPOCHS_SHOWN else ''}"
        print_table(last if len(rows) < len(report["epochs"]) else "Epochs", columns, rows)
    for command in report["next"]:
        typer.echo(f"next: {command}", err=True)


@app.command("rm")
def rm(runs: Runs, outputs: Outputs = None, as_json: AsJson = False) -> None:
    """Remove runs: they go to a bin, from which `dlcli runs restore` brings them back.

    Example: dlcli runs rm latest
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.trash import remove

    folder = outputs_folder(outputs)
    moved = remove(runs, folder)
    _print_moved("removed", moved, as_json=as_json)
    if not as_json:
        names = " ".join(one.run.folder_name for one in moved)
        typer.echo(f"bring back:  dlcli runs restore {names}", err=True)
        typer.echo("what could be freed:  dlcli runs prune", err=True)


@app.command("restore")
def restore(runs: Runs, outputs: Outputs = None, as_json: AsJson = False) -> None:
    """Bring removed runs back to where they were; `dlcli runs ls --bin` lists them.

    Example: dlcli runs restore latest
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.trash import restore as bring_back

    _print_moved("restored", bring_back(runs, outputs_folder(outputs)), as_json=as_json)


def _print_moved(what: str, moved: Sequence[Moved], *, as_json: bool) -> None:
    import json

    for one in moved:
        data = {
            "name": one.run.name,
            "experiment": one.run.experiment,
            "from": str(one.run.path),
            "path": str(one.path),
        }
        typer.echo(json.dumps(data) if as_json else f"{what} {one.run.name}: {one.path}")


@app.command("prune")
def prune(
    words: Words = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it, for good; without it they are only listed.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only of runs made so long ago: 12h, 30d, 8w.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="All checkpoints of the finished runs that the filter means.")
    ] = False,
    sweep: Sweep = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Tell what disk could be freed, and with --yes free it.

    What goes: removed runs; checkpoints of finished runs, but for `best` and `last`; what killed saves left over.

    Example: dlcli runs prune --older-than 30d
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.trash import find_waste, free

    found = find_waste(outputs_folder(outputs), words or (), older_than=older_than, sweep=sweep, weights=weights)
    if yes:
        free(found)
    _print_waste(found, as_json=as_json, is_freed=yes)


def _print_waste(found: Sequence[Waste], *, as_json: bool, is_freed: bool) -> None:
    from dlcli.reporting.tables import print_table
    from dlcli.runs.trash import waste_table

    json_rows = [
        {"name": w.run.name, "kind": w.kind, "path": str(w.path), "bytes": w.size, "deleted": is_freed} for w in found
    ]
    if found or as_json:
        columns, cells = waste_table(found)
        print_table("Freed" if is_freed else "Could be freed", columns, cells, json_rows=json_rows if as_json else None)
    if not as_json:
        total = f"{sum(waste.size for waste in found) / 1e6:,.1f} MB"
        message = f"{total} freed" if is_freed else f"{total} could be freed; nothing was deleted: add --yes"
        typer.echo(message if found else "there is nothing to free", err=True)


@app.command("export")
def export(
    words: Words = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="csv|json|markdown", help="Default: by the file's ending, or csv.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="FILE", help="Write there instead of to stdout.")] = None,
    sort: Sort = None,
    sweep: Sweep = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Export the runs as a table for other programs, one row each: facts, overrides, choices, every metric.

    Example: dlcli runs export status=completed --format markdown
    """
    import sys
    from pathlib import Path

    from dlcli.reporting import runs_export as exporting
    from dlcli.reporting.output import Output
    from dlcli.runs.facts import gather
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.query import parse_query, select

    target = Path(to).expanduser() if to is not None else None
    form = "json lines" if as_json else exporting.chosen_format(form, target)
    query = parse_query(words or ())
    runs = select(gather(outputs_folder(outputs), sweep=sweep), query, sort).runs
    text = exporting.export(runs, form)
    if target is None:
        Output(sys.stdout).write(text)
    else:
        exporting.write(text, target)
        typer.echo(f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {target}", err=True)
