"""`dlcli runs ls` and `dlcli runs show RUN`: the runs there are, and what came of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="List the runs, or show one.")

Outputs = Annotated[str | None, typer.Option("--outputs", help="Where the runs lie.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@app.command("ls")
def ls(
    experiment: Annotated[str | None, typer.Argument(help="Only the runs of this experiment.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="The newest so many; 0 for all.", min=0)] = 20,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, newest first: name, experiment, status, epochs and metrics.

    Example: dlcli runs ls
    """
    import os
    import sys

    from dlcli.display import is_terminal, print_table, width_of
    from dlcli.run_report import list_table, row_as_json
    from dlcli.runs import list_runs, outputs_folder

    folder = outputs_folder(outputs)
    every = list_runs(folder)
    rows = [row for row in every if experiment in (None, row.experiment)]
    if experiment is not None and every and not rows:
        _check_experiment(experiment, {row.experiment for row in every})
    shown = rows[: limit or None]
    json_rows = [row_as_json(row) for row in shown] if as_json else None
    is_narrow = is_terminal(sys.stdout) or "COLUMNS" in os.environ  # a file or a pipe gets every column
    columns, cells = list_table(shown, width_of(sys.stdout) if is_narrow else 10_000)
    print_table(f"Runs in {folder}", columns, cells, json_rows=json_rows)
    if not as_json and not shown:
        of = f" of {experiment}" if experiment and every else ""
        typer.echo(f"no runs{of} in {folder}; make one with: dlcli train {experiment if of else 'digits'}", err=True)
    elif not as_json and len(shown) < len(rows):
        typer.echo(f"{len(rows) - len(shown)} older runs: dlcli runs ls --limit 0", err=True)


def _check_experiment(experiment: str, with_runs: set[str]) -> None:
    """Raise ConfigError for an experiment that has neither runs nor a config."""
    from dlcli.confdir import options, search_path
    from dlcli.errors import ConfigError, nearest, printable

    if experiment in options("experiment", search_path()):
        return
    better = nearest(experiment, sorted(with_runs))
    raise ConfigError(
        f"there is no experiment {printable(experiment)}",
        hint=f"{f'Did you mean {better}? ' if better else ''}There are runs of: {', '.join(sorted(with_runs))}.",
    )


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

    from dlcli.run_report import describe_run
    from dlcli.runs import find_run, outputs_folder

    report = describe_run(find_run(run, outputs_folder(outputs)))
    if as_json:
        typer.echo(json.dumps(report, default=str))
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    from dlcli.display import print_table
    from dlcli.run_report import EPOCHS_SHOWN, epoch_table, fact_rows, metric_rows

    print_table(report["name"], ["run", report["name"]], fact_rows(report))
    if metrics := metric_rows(report):
        typer.echo()
        print_table("Metrics", ["metric", "value", "over the epochs"], metrics)
    if report["epochs"]:
        columns, rows = epoch_table(report["epochs"])
        typer.echo()
        last = f"The last {EPOCHS_SHOWN} epochs{', and the best' if len(rows) > EPOCHS_SHOWN else ''}"
        print_table(last if len(rows) < len(report["epochs"]) else "Epochs", columns, rows)
    for command in report["next"]:
        typer.echo(f"next: {command}", err=True)
