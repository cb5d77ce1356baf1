"""`dlcli sync RUN`: upload a run to Weights & Biases, whenever there is a network."""

from __future__ import annotations

from typing import Annotated

import typer


def sync(
    run: Annotated[
        str,
        typer.Argument(help="A run: its name, folder, the beginning of one, or latest; or a sweep, or several seeds."),
    ] = "latest",
    project: Annotated[str | None, typer.Option("--project", help="W&B project, else the run's own.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds the upload may take.", min=1)] = 600.0,
    outputs: Annotated[str | None, typer.Option("--outputs", help="Where the runs lie.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Upload a run to Weights & Biases by replaying its events; needs a key and a network, changes nothing in the run.

    Example: dlcli sync latest
    """
    import json

    from dlcli.reporting.wandb_tracker import sync_run
    from dlcli.runs.find import find_runs, outputs_folder

    for found in find_runs(run, outputs_folder(outputs)):
        url = sync_run(found, project=project, timeout_s=timeout)
        print(json.dumps({"run": str(found.path), "url": url}) if as_json else f"{found.name}: {url}", flush=True)
