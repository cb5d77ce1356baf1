"""`dlcli list [GROUP]`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from dlcli.commands import ConfigDir


def list_options(
    group: Annotated[str | None, typer.Argument(help="A group: experiment, dataset, model, optimizer, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """List the experiments, or the options of a group, each with the command that runs it.

    Example: dlcli list model
    """
    from dlcli.config.folders import SWEEP, command, describe, groups, options, search_path
    from dlcli.errors import ConfigError, nearest, printable
    from dlcli.reporting.tables import print_table

    search = search_path(config_dir)
    known = (*groups(search), SWEEP)
    if group is not None and group not in known:
        better = nearest(group, known)
        raise ConfigError(
            f"there is no group {printable(group)}",
            hint=f"{f'Did you mean {better}? ' if better else ''}({', '.join(known)})",
        )
    shown = [group] if group else ["experiment"]
    rows = [[name, describe(path), command(path, g, name)] for g in shown for name, path in options(g, search).items()]
    as_objects = [dict(zip(("name", "what", "command"), row, strict=True)) for row in rows]
    if as_json:
        import json

        for row in as_objects:
            print(json.dumps(row))
        return
    print_table(shown[0], ["name", "what", "command"], rows)
    if group is None:
        print("\nother groups: " + ", ".join(f"{g} ({len(options(g, search))})" for g in known if g != "experiment"))
        print("dlcli list GROUP shows one")
