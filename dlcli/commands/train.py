"""`dlcli train [EXPERIMENT] [KEY=VALUE]...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, MaxRestarts, Outputs, Trust


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [KEY=VALUE]...", help="An experiment (dlcli list) or a YAML file, and settings."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the events, one JSON object per line.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
    max_restarts: MaxRestarts = 0,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Watch some steps: a trace for the browser, the most expensive operations."),
    ] = False,
    num_seeds: Annotated[
        int | None, typer.Option("--seeds", help="So many runs that differ in the seed only; their mean and spread.")
    ] = None,
) -> int:
    """Train an experiment: compose its config, check it, train, evaluate, keep everything in a run folder.

    Example: dlcli train digits optimizer.lr=0.002 model.hidden=[64,64]
    """
    from dlcli.config import compose_command

    composed = compose_command(words or [], config_dir=config_dir)

    from dlcli.runs.find import outputs_folder
    from dlcli.training import start

    if num_seeds is not None:
        return train_seeds(
            composed, num_seeds, outputs_folder(outputs), as_json=as_json, trusted=trust or [], profile=profile
        )
    if (devices := start.devices_to_launch(composed.tree)) > 1:
        return start.launch_again(devices, max_restarts)
    display = start.open_display_of_rank(as_json=as_json)
    try:
        return start.train(
            composed, outputs=outputs_folder(outputs), display=display, trusted=trust or [], profile=profile
        )
    finally:
        display.close()


def train_seeds(composed: Any, count: int, outputs: Path, *, as_json: bool, **options: Any) -> int:
    from dlcli.evaluation.seeds import group as seeds
    from dlcli.evaluation.seeds.display import open_seeds_display

    seeds.check_count(composed, count)
    display = open_seeds_display(as_json=as_json)
    try:
        return seeds.train(composed, count, outputs=outputs, display=display, **options)
    finally:
        display.close()
