"""`dlcli completion SHELL`: the script that makes <TAB> work."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell you use.")]) -> None:
    """Print the script that completes commands, experiments, options and runs at <TAB>.

    Example: dlcli completion bash
    """
    from dlcli.completion import script

    print(script(shell.value), end="")
