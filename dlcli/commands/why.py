"""`dlcli why [RUN]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcli.commands import Outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dlcli.evaluation.diagnosis.evidence import Evidence
    from dlcli.evaluation.diagnosis.reasons import Reason


def why(
    run: Annotated[str, typer.Argument(help="A run: its name, folder, the beginning of one, or latest.")] = "latest",
    outputs: Outputs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per reason, and the verdict.")] = False,
) -> None:
    """Say why a run went as it did: what stands out, its figures, and a command to try; from the run folder alone.

    Example: dlcli why latest
    """
    from dlcli.errors import ConfigError
    from dlcli.evaluation.diagnosis.evidence import read_evidence
    from dlcli.evaluation.diagnosis.reasons import diagnose, vital_figures
    from dlcli.reporting.tables import print_table
    from dlcli.runs.find import find_run, outputs_folder, seed_members
    from dlcli.training.start import in_a_command

    found = find_run(run, outputs_folder(outputs).absolute())
    if members := seed_members(found):
        raise ConfigError(f"{found.name} is {len(members)} runs, one of each seed", hint=f"dlcli why {members[0]}")
    evidence = read_evidence(found, in_a_command(found))
    reasons, figures = diagnose(evidence), vital_figures(evidence)
    if as_json:
        rows: list[dict[str, Any]] = [{"event": "reason", **vars(reason)} for reason in reasons]
        last = {"event": "diagnosed", "run": str(found.path), "name": found.name, "status": evidence.status}
        print_table("why", (), (), json_rows=[*rows, {**last, "reasons": len(reasons), "figures": figures}])
    else:
        print_reasons(evidence, reasons, figures)


def print_reasons(evidence: Evidence, reasons: list[Reason], figures: Mapping[str, Any]) -> None:
    """The run in one line, then each reason: title, figures, command. Commands are never broken."""
    import sys

    from dlcli.reporting.format import flow
    from dlcli.reporting.output import Output, clean, width_of

    out, width = Output(sys.stdout), width_of(sys.stdout)
    lines = flow(
        [clean(evidence.name.split()[0]), evidence.experiment, evidence.status, *in_words(figures)], width, indent=""
    )
    for place, reason in enumerate(reasons, 1):
        lines += ["", f"{place}  {reason.title}", *flow(in_words(reason.figures), width, indent="   ")]
        lines.append(f"   try: {clean(reason.remedy)}")
    if not reasons:
        lines += ["", "nothing stands out" + (" so far" if evidence.status == "running" else "")]
    out.write("\n".join(lines) + "\n")


def in_words(figures: Mapping[str, Any]) -> list[str]:
    """`train loss 0.0213`: each figure as a person reads it."""
    return [f"{name} {value_of(name, value)}" for name, value in figures.items() if value is not None]


def value_of(name: str, value: Any) -> str:
    from dlcli.reporting.format import count, is_share, metric_value
    from dlcli.reporting.output import clean

    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if not isinstance(value, float):
        return clean(value)
    if "share" in name or name.startswith("of ") or name == "even falling has":
        return f"{100 * value:.0f} %"
    if any(map(is_share, name.split())) or name == "guessing gets":
        return f"{100 * value:.2f} %"
    return f"{value:.3g}" if name.startswith(("lr", "seconds")) else metric_value(name, value)
