"""One file per command, nothing heavier than Typer at the top: parse, call one function, print.

The options that several commands share are spelt here, once.
"""

from __future__ import annotations

from typing import Annotated

import typer

ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", help="Your own configs, searched first; default ./conf.")
]
Outputs = Annotated[
    str | None, typer.Option("--outputs", help="Where runs are kept; default $DLCLI_OUTPUTS or ./outputs.")
]
Trust = Annotated[list[str] | None, typer.Option("--trust", help="A package of yours whose classes a config may name.")]
MaxRestarts = Annotated[
    int,
    typer.Option("--max-restarts", min=0, max=1_000, help="With several devices: start again when a rank dies."),
]
