"""`dlcli config show` and `dlcli config why`: what a command means, and who said so."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir

app = typer.Typer(help="Show what an experiment is made of, and where each value comes from.", no_args_is_help=True)
FREE = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@app.command(context_settings=FREE)
def show(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPERIMENT] [KEY=VALUE]...", help="As in dlcli train.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Print the composed and checked config; nothing is started.

    Example: dlcli config show mnist model=lenet5
    """
    import json

    import yaml

    from dlcli.config import compose_command

    composed = compose_command(words or [], config_dir=config_dir, command="config show")
    print(
        json.dumps(composed.tree)
        if as_json
        else yaml.safe_dump(composed.tree, sort_keys=False, allow_unicode=True).rstrip()
    )


@app.command(context_settings=FREE)
def why(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPERIMENT] KEY [KEY=VALUE]...", help="An experiment, a setting, and settings as in dlcli train."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show every place that sets one key or chooses a group's option, in order, with its meaning; the last one wins.

    Example: dlcli config why mnist optimizer.lr
    """
    import json

    from dlcli.config.why import explain
    from dlcli.reporting.tables import print_table

    answer: dict[str, Any] = explain(words, config_dir=config_dir)
    if as_json:
        print(json.dumps(answer))
        return
    print(f"{answer['key']} = {answer['value']}")
    is_group = "file" in answer
    about = answer["meaning"] or ("" if is_group else "(a setting of this option alone)")
    for line in (about, answer.get("file"), answer["expects"]):
        if line:
            print(f"  {line}")
    rows = [[p["place"], str(p["value"])] for p in answer["chain"]]
    print_table(f"{'chosen' if is_group else 'set'} at, the last one wins", ["place", "value"], rows)
