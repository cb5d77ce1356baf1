"""`dlcli doctor`: what this machine has, as one block to paste into a bug report."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    outputs: Annotated[str | None, typer.Option("--outputs", help="Where the runs lie.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report versions, devices, memory, disk, data and the tracker; keys are never shown, torch may be broken.

    Example: dlcli doctor
    """
    import json

    from dlcli.planning.machine import examine
    from dlcli.runs.find import outputs_folder
    from dlcli.runs.redaction import redact

    findings = redact(examine(outputs_folder(outputs)))
    print(json.dumps(findings) if as_json else as_text(findings))


def as_text(findings: dict[str, object]) -> str:
    """One `name: value` line per finding; of a list, one line per item."""
    lines = []
    for name, value in findings.items():
        items = (value or ["none"]) if isinstance(value, list) else [value]
        lines += [f"{name + ':' if i == 0 else '':<13}{item}" for i, item in enumerate(items)]
    return "\n".join(lines)
