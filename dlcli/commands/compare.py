"""`dlcli compare A B [...]`: what differs between runs, and whether the difference is more than noise."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="A B [...]", help="Runs, or groups of seeds; A is the baseline.")
    ],
    metric: Annotated[
        str | None, typer.Option("--metric", help="What is judged by, such as val/loss; default: the task's own.")
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            "--fail-if",
            metavar="worse|not-better",
            help="worse or not-better: exit with 1 when a run is that; can't tell is not worse.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> int:
    """Compare runs: the settings that differ, the scores, and whether the difference is more than noise.

    Example: dlcli compare latest latest --fail-if worse
    """
    from functools import partial

    from dlcli.config.folders import search_path
    from dlcli.errors import ConfigError
    from dlcli.evaluation.compare.answers import answers_of
    from dlcli.evaluation.compare.differences import differing_settings
    from dlcli.evaluation.compare.report import as_event, is_failure, print_comparison, unknown_at_the_gate
    from dlcli.evaluation.compare.verdict import choose_metric, read_side
    from dlcli.evaluation.compare.verdict import compare as judge
    from dlcli.runs.find import find_run, outputs_folder

    if fail_if not in (None, "worse", "not-better"):
        raise ConfigError(f"--fail-if {fail_if}: there is no such verdict", hint="--fail-if worse or not-better")
    if len(runs) < 2:
        raise ConfigError("one run is named; two are compared", hint=f"dlcli compare {runs[0]} OTHER")
    search = search_path(config_dir)
    sides = [read_side(find_run(name, outputs_folder(outputs))) for name in runs]
    chosen = choose_metric(sides, metric)
    settings = differing_settings([side.record for side in sides], search)
    ask = partial(answers_of, search=search, trusted=trust or [])
    verdicts = [judge(sides[0], side, chosen, ask) for side in sides[1:]]
    show(as_event(sides, chosen, settings, verdicts), print_comparison, as_json=as_json)
    if message := unknown_at_the_gate(verdicts, fail_if):
        typer.echo(message, err=True)
    return int(fail_if is not None and any(is_failure(verdict, fail_if) for verdict in verdicts))


def show(event: dict[str, Any], print_event: Any, *, as_json: bool) -> None:
    """The event as one JSON object, or as people read it."""
    import json

    if as_json:
        print(json.dumps(event))
    else:
        print_event(event)
