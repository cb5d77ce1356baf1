"""`dlcli train [EXPERIMENT] [KEY=VALUE]...`."""

from __future__ import annotations

from typing import Annotated

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


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
) -> int:
    """Train an experiment: compose its config, check it, train, evaluate, keep everything in a run folder.

    Example: dlcli train digits optimizer.lr=0.002 model.hidden=[64,64]
    """
    from dlcli.config import compose_command

    composed = compose_command(words or [], config_dir=config_dir)

    from dlcli import session
    from dlcli.display import open_display
    from dlcli.runs import outputs_folder

    display = open_display("json" if as_json else "auto")
    try:
        return session.train(composed, outputs=outputs_folder(outputs), display=display, trusted=trust or [])
    finally:
        display.close()
