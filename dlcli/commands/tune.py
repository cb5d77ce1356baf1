"""`dlcli tune batch|lr|workers [EXPERIMENT] [KEY=VALUE]...`."""

from __future__ import annotations

from typing import Annotated

import typer

from dlcli.commands import ConfigDir, Trust

app = typer.Typer(no_args_is_help=True, help="Measure on the real network and data, and propose a setting.")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EXPERIMENT] [KEY=VALUE]...", help="As for dlcli train; the rest is left as it is."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per row, and the proposal.")]


@app.command()
def batch(words: Words = None, as_json: AsJson = False, config_dir: ConfigDir = None, trust: Trust = None) -> None:
    """Propose the batch size: the smallest one that is nearly as fast as the fastest, and fits.

    Example: dlcli tune batch digits
    """
    propose("batch", words, as_json=as_json, config_dir=config_dir, trust=trust)


@app.command()
def lr(words: Words = None, as_json: AsJson = False, config_dir: ConfigDir = None, trust: Trust = None) -> None:
    """Propose the learning rate, by a range test: a hundred steps while the rate grows from 1e-6 to 10.

    Example: dlcli tune lr digits
    """
    propose("lr", words, as_json=as_json, config_dir=config_dir, trust=trust)


@app.command()
def workers(words: Words = None, as_json: AsJson = False, config_dir: ConfigDir = None, trust: Trust = None) -> None:
    """Propose how the data are read: on the device, or by how many processes.

    Example: dlcli tune workers digits
    """
    propose("workers", words, as_json=as_json, config_dir=config_dir, trust=trust)


def propose(
    what: str, words: list[str] | None, *, as_json: bool, config_dir: str | None, trust: list[str] | None
) -> None:
    from dlcli.config import compose_command

    composed = compose_command(words or [], config_dir=config_dir)

    from dlcli.planning.tune import tune
    from dlcli.reporting.tables import print_table
    from dlcli.training.allow_list import Builder
    from dlcli.training.completing import complete

    found = tune(what, complete(composed.tree), Builder.for_search(composed.search, trust or []))
    command = " ".join(["dlcli train", *(words or []), *found.words])
    proposed = {"event": "proposed", "words": found.words, "why": found.why, "command": command}
    json_rows = [*({"event": "measured", **row} for row in found.rows), proposed] if as_json else None
    heads = list(found.rows[0])
    print_table(what, heads, [[said(row[head]) for head in heads] for row in found.rows], json_rows=json_rows)
    if not as_json:
        print(f"\n{' '.join(found.words)}: {found.why}\n{command}")


def said(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
