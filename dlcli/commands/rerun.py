"""`dlcli rerun RUN`: trains a run again from its record, and says whether the result is the same."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def rerun(
    reference: Annotated[str, typer.Argument(metavar="[RUN]", help="A finished run; default latest.")] = "latest",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the events, one JSON object per line; the verdict is the last.")
    ] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> int:
    """Train a run again from its record: the same bits, within noise, or not the same (exit code 1), and what differs.

    Example: dlcli rerun latest
    """
    from dlcli.config.folders import search_path
    from dlcli.evaluation.compare import rerun as rerunning
    from dlcli.evaluation.compare.differences import differing_environment
    from dlcli.runs.find import find_run, outputs_folder
    from dlcli.training import start

    run = find_run(reference, outputs_folder(outputs))
    record, tree = rerunning.prepare(run)
    rerunning.check_rerun(run)
    search, notes = search_path(config_dir), rerunning.cautions(run, tree)
    display = start.open_display_of_rank(as_json=as_json)
    options: dict[str, Any] = {"outputs": run.outputs, "display": display, "search": search, "trusted": trust or []}
    try:
        again = rerunning.train_again(run, record, tree, **options)
    except rerunning.Stopped as stopped:
        return stopped.code
    finally:
        display.close()
    found = rerunning.judge(run, again, rerunning.asker(search, trust or []))
    differs = differing_environment(record, again.read_record())
    event = {
        "event": "rerun_finished",
        "verdict": found.word,
        "reason": found.reason,
        "run": str(run.path),
        "rerun": str(again.path),
        "environment": [{"what": what, "before": before, "now": now} for what, before, now in differs],
        "notes": notes,
    }
    show(event, run.name, again.name, as_json=as_json)
    return int(found.word == rerunning.OTHER)


def show(event: dict[str, Any], before: str, after: str, *, as_json: bool) -> None:
    import json

    from dlcli.reporting.output import clean
    from dlcli.reporting.tables import print_table

    if as_json:
        print(json.dumps(event))
        return
    print()
    rows = [[row["what"], row["before"], row["now"]] for row in event["environment"]]
    if rows:
        print_table("", ["differs", before, after], rows)
        print()
    else:
        print("nothing differs: versions, device, commit and data are those of then")
    print(clean(f"{after} against {before}: {event['verdict']} · {event['reason']}"))
    for note in event["notes"]:
        print(f"note: {clean(note)}", file=sys.stderr)
