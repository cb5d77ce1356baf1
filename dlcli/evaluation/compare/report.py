"""A comparison as one event, and as tables with a sentence for each verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dlcli.evaluation.compare.differences import Differing, shown
from dlcli.evaluation.compare.verdict import BETTER, SAME, UNKNOWN, WORSE, Side, Verdict, direction
from dlcli.evaluation.significance import false_alarms
from dlcli.reporting.format import flow, is_share, metric_name, metric_spread, told_seeds
from dlcli.reporting.output import clean, width_of
from dlcli.reporting.tables import print_table
from dlcli.runs.events import finite


def as_event(
    sides: Sequence[Side], metric: str, settings: Sequence[Differing], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """{"event": "compared", ...}: plain data, all that is shown."""
    names = labels(sides)
    return finite(
        {
            "event": "compared",
            "metric": metric,
            "better": direction(sides[0], metric),
            "baseline": names[0],
            "settings": [{"key": row.key, "values": list(map(shown, row.values))} for row in settings],
            "runs": [_side(side, name) for side, name in zip(sides, names, strict=True)],
            "verdicts": [_verdict(verdict, name) for verdict, name in zip(verdicts, names[1:], strict=True)],
        }
    )


def _side(side: Side, name: str) -> dict[str, Any]:
    facts = {metric: side.facts_of(metric) for metric in side.scores}
    return {
        "name": name,
        "path": str(side.run.path),
        "status": side.status,
        "seeds": side.seeds,
        "diverged": list(side.diverged),
        "scores": {metric: {str(s): v for s, v in values.items()} for metric, values in side.scores.items()},
        "metrics": {metric: found["mean"] for metric, found in facts.items()},
        "deviations": {metric: found["deviation"] for metric, found in facts.items() if side.is_group},
        "intervals": {metric: found["interval"] for metric, found in facts.items() if side.is_group},
    }


def _verdict(verdict: Verdict, name: str) -> dict[str, Any]:
    found = verdict.difference
    return {
        "run": name,
        "verdict": verdict.word,
        "test": verdict.test,
        "difference": found.value if found else None,
        "interval": list(found.interval) if found else None,
        "p": found.p if found else None,
        "reason": verdict.reason or None,
        "next": list(verdict.hints),
    }


def labels(sides: Sequence[Side]) -> list[str]:
    """The runs' names; the folder's where two runs have the same name."""
    folders = {side.run.path.resolve(): side.run.name for side in sides}
    names = list(folders.values())
    return [side.run.folder_name if names.count(side.run.name) > 1 else side.run.name for side in sides]


def is_failure(verdict: Verdict, gate: str) -> bool:
    """gate: worse, or not-better."""
    return verdict.word == WORSE if gate == "worse" else verdict.word != BETTER


def unknown_at_the_gate(verdicts: Sequence[Verdict], gate: str | None) -> str | None:
    """What is said where a gate lets through what nobody could tell."""
    if gate != "worse" or all(verdict.word != UNKNOWN for verdict in verdicts):
        return None
    return "note: --fail-if worse lets pass what can't be decided; --fail-if not-better does not"


# ---------------------------------------------------------------------------------------------------------- for people


def print_comparison(event: dict[str, Any]) -> None:
    """Settings, scores and verdicts on stdout; what to do next on stderr."""
    runs, metric = event["runs"], event["metric"]
    names = [run["name"] for run in runs]
    rows = [[row["key"], *row["values"]] for row in event["settings"]]
    if len({str(run["seeds"]) for run in runs}) > 1:
        rows.append(["seed", *(told_seeds(run["seeds"]) for run in runs)])
    if rows:
        print_table("", ["setting", *names], rows)
    else:
        print("no setting differs")
    print()
    metrics = dict.fromkeys([metric, *(name for run in runs for name in run["metrics"])])
    print_table("", ["score", *names], [[metric_name(name), *(_score(run, name) for run in runs)] for name in metrics])
    print()
    for verdict in event["verdicts"]:
        first, *rest = flow(in_words(verdict, event["baseline"], metric), width_of(sys.stdout) - 2, indent="")
        print(clean(first), *(f"  {clean(line)}" for line in rest), sep="\n")
    for line in [*_notes(runs), *advice(event["verdicts"])]:
        print(clean(line), file=sys.stderr)


def _notes(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a table of scores does not say of its runs."""
    for run in runs:
        if diverged := run["diverged"]:
            seeds = f"seed{'s' if len(diverged) > 1 else ''} {told_seeds(diverged)}"
            of = len(run["seeds"])
            yield f"note: {run['name']} diverged with {seeds} of {of}: its scores are those of the others"
        if run["status"] != "completed":
            yield f"note: {run['name']} is {run['status']}: these are its scores so far"


def _score(run: dict[str, Any], metric: str) -> str | None:
    value = run["metrics"].get(metric)
    return None if value is None else metric_spread(metric, value, run["deviations"].get(metric))


def in_words(verdict: dict[str, Any], baseline: str, metric: str) -> list[str]:
    """B is worse than A in test accuracy · -1.05 points (95 % interval -1.30 to -0.80), p = 0.003 · paired t-test"""
    name, score = verdict["run"], metric_name(metric)
    opening = {
        UNKNOWN: f"can't tell whether {name} is better than {baseline} in {score}",
        SAME: f"{name} against {baseline}: no difference in {score} beyond noise",
    }.get(verdict["verdict"], f"{name} is {verdict['verdict']} than {baseline} in {score}")
    items = [opening]
    if verdict["verdict"] == WORSE and verdict["reason"]:  # it diverged: the figures are those of the other seeds
        items = [f"{name} is worse than {baseline}", verdict["reason"]]
    if verdict["difference"] is not None:
        gap, low, high = (_gap(metric, value) for value in (verdict["difference"], *verdict["interval"]))
        unit = " points" if is_share(metric) else ""
        items.append(f"{gap}{unit} (95 % interval {low} to {high}), p {_chance(verdict['p'])}")
    return [*items, *(text for text in (verdict["test"], verdict["reason"]) if text and text not in items)]


def _gap(metric: str, value: float | None) -> str:
    """With its sign; shares in percentage points."""
    if value is None:
        return "?"
    return f"{100 * value:+.2f}" if is_share(metric) else f"{value:+.4g}"


def _chance(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def advice(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """What the tests do not say, and the commands that would."""
    lines = []
    if any(verdict["test"].startswith("McNemar") for verdict in verdicts):
        lines.append("note: McNemar's test speaks of these networks, not of what another seed would give; that would:")
    count = sum(verdict["p"] is not None for verdict in verdicts)
    if count > 1:
        chance = f"{100 * false_alarms(count):.0f} %"
        lines.insert(
            0, f"note: of {count} comparisons at 5 % each, one alarms falsely in up to {chance} of such tables"
        )
    hints = dict.fromkeys(hint for verdict in verdicts for hint in verdict["next"])
    return [*lines, *(f"next: {hint}" for hint in hints)]
