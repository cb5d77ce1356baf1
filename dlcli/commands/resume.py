"""`dlcli resume [RUN] [KEY=VALUE]...`."""

from __future__ import annotations

from typing import Annotated

import typer

from dlcli.commands import ConfigDir, MaxRestarts, Outputs, Trust


def resume(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] [KEY=VALUE]...", help="A run (default latest), and what shall differ."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the events, one JSON object per line.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
    max_restarts: MaxRestarts = 0,
) -> int:
    """Go on with an interrupted run exactly where it stopped, or train a finished one further.

    Example: dlcli resume latest trainer.epochs=40
    """
    from dlcli.config import split_reference
    from dlcli.config.folders import search_path
    from dlcli.evaluation.seeds import group as seeds
    from dlcli.evaluation.seeds.display import open_seeds_display
    from dlcli.runs.find import find_run, outputs_folder
    from dlcli.runs.trash import check_not_removed
    from dlcli.training import start

    reference, settings = split_reference(words)
    run = find_run(reference, outputs_folder(outputs))
    check_not_removed(run)
    record, tree, _ = start.to_resume(run, settings)
    if seeds.is_group(record):
        display = open_seeds_display(as_json=as_json)
        return seeds.resume(run, settings, display=display, search=search_path(config_dir), trusted=trust or [])
    if (devices := start.devices_to_launch(tree)) > 1:
        return start.launch_again(devices, max_restarts)
    display = start.open_display_of_rank(as_json=as_json)
    try:
        return start.resume(run, settings, display=display, search=search_path(config_dir), trusted=trust or [])
    finally:
        display.close()
