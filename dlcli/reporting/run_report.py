"""The report of a run: its choices, metrics, epochs and checkpoints, read from its folder without torch."""

from __future__ import annotations

import math
import os
from typing import Any

from dlcli.config.folders import GROUPS
from dlcli.errors import CheckpointError
from dlcli.reporting.format import metric_spread, metric_value
from dlcli.runs.events import read_events
from dlcli.runs.find import RunRow, all_runs, checkpoint_steps, row, seed_members
from dlcli.runs.folder import RunFolder

EPOCHS_SHOWN = 12
_BARS = "▁▂▃▄▅▆▇█"


def row_as_json(run: RunRow) -> dict[str, Any]:
    return {
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "epochs": run.epochs,
        "metrics": run.metrics,
        "created": run.created,
        "path": str(run.path),
    }


def number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------------------- one run


def describe_run(run: RunFolder) -> dict[str, Any]:
    """A run as plain data: row_as_json, and choices, overrides, device, epochs, checkpoints, curves, next.

    A run without a readable run.yaml is described by what its events say.
    """
    record = _record(run)
    report = row_as_json(row(run))
    report["experiment"] = record.get("experiment") or report["experiment"]  # of a trial, the folder is its sweep's
    chosen = record.get("choices")
    report["choices"] = _choices(record.get("config"), chosen if isinstance(chosen, dict) else {})
    report["overrides"] = record.get("overrides") or []
    report["device"] = record.get("device")
    report["epochs_done"] = report.pop("epochs")
    report["epochs"] = [event for event in read_events(run.events) if event.get("event") == "epoch"]
    report["checkpoints"] = [path.name for path in checkpoint_steps(run)]
    report["best"], report["last"] = _target(run, "best"), _target(run, "last")
    report["curves"] = str(run.curves) if run.curves.is_file() else None
    report |= _group_facts(run)
    report["next"] = _next_commands(run, str(report["status"]), bool(report["checkpoints"]))
    return report


def _group_facts(run: RunFolder) -> dict[str, Any]:
    """Return the results of several seeds from their group's summary; nothing for a single run."""
    summary = run.read_summary() or {}
    kinds: dict[str, type] = {"seeds": list, "diverged": list, "deviations": dict, "intervals": dict, "per_seed": dict}
    if not isinstance(summary.get("seeds"), list):
        return {}
    return {key: said if isinstance(said := summary.get(key), kind) else kind() for key, kind in kinds.items()}


def _record(run: RunFolder) -> dict[str, Any]:
    try:
        return run.read_record()
    except CheckpointError:
        first = next(read_events(run.events), {})
        return first if first.get("event") == "run_started" else {}


def _device(facts: object) -> object:
    """The device that a record tells of, as one line."""
    if not isinstance(facts, dict):
        return facts
    threads = f"{facts.get('threads')} thread{'s' if facts.get('threads') != 1 else ''}"
    return f"{facts.get('device')}, {facts.get('precision')}, {threads}, torch {facts.get('torch')}"


def _choices(config: object, chosen: dict[str, str]) -> dict[str, str]:
    """Return the option of each group: as recorded, otherwise from the config."""
    from dlcli.config.naming import option_of

    if not isinstance(config, dict):
        return {}
    named = {group: option_of(group, config, chosen) for group in GROUPS} | chosen
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict) and "lr" in optimizer:
        named["optimizer"] = f"{named.get('optimizer') or ''} lr={optimizer['lr']}".strip()
    seed = {"seed": config["seed"]} if "seed" in config else {}
    return {name: str(value) for name, value in {**named, **seed}.items() if value is not None}


def _target(run: RunFolder, name: str) -> str | None:
    try:
        return os.readlink(run.checkpoints / name)
    except OSError:
        return None


def _next_commands(run: RunFolder, status: str, has_checkpoint: bool) -> list[str]:
    if status == "running":
        return ["dlcli runs ls"]
    newest = next((other for other in all_runs(run.outputs) if other.name == run.name), run)
    name = run.name if newest.path == run.path else run.folder_name  # the name alone means the newest of that name
    if members := seed_members(run):
        go_on = [] if status == "completed" else [f"dlcli resume {name}"]
        return [*go_on, f"dlcli eval {members[0]}", f"dlcli compare OTHER {name}"]
    stopped = status in ("interrupted", "killed") and run.run_yaml.is_file()
    if not has_checkpoint:
        return [f"dlcli resume {name}" if stopped else f"dlcli train {run.experiment}"]
    commands = [f"dlcli eval {name}", f"dlcli resume {name}"]
    return commands[::-1] if stopped else commands[: 1 if status == "completed" else 2]


# ----------------------------------------------------------------------------------------------------------- its tables


def fact_rows(report: dict[str, Any]) -> list[tuple[str, object]]:
    """Name and value of what a report says in single words; what is not known is left out."""
    checkpoints = ", ".join(
        name + "".join(f" ({link})" for link in ("best", "last") if report[link] == name)
        for name in report["checkpoints"]
    )
    facts = {
        "experiment": report["experiment"],
        "status": report["status"],
        "seeds": _ran(report),
        "created": report["created"].replace("T", " "),
        "folder": report["path"],
        **report["choices"],
        "overrides": " ".join(map(str, report["overrides"])),
        "device": _device(report["device"]),
        "epochs": report["epochs_done"],
        "checkpoints": checkpoints,
        "curves": report["curves"],
    }
    return [(name, value) for name, value in facts.items() if value not in (None, "")]


def _ran(report: dict[str, Any]) -> str | None:
    from dlcli.reporting.format import ran

    return ran(report) if report.get("seeds") else None


def spread_rows(report: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Each metric of a group of seeds: mean ± standard deviation, and the 95 % interval of the mean."""
    from dlcli.reporting.format import interval

    spreads, bounds = report["deviations"], report["intervals"]
    return [
        (name, metric_spread(name, mean, spreads.get(name)), interval(name, bounds[name]) if name in bounds else None)
        for name, mean in report["metrics"].items()
    ]


def seed_table(report: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: the metrics of each seed; of one that has none, why."""
    names = list(report["metrics"])
    rows = []
    for seed in report["seeds"]:
        found = report["per_seed"].get(str(seed))
        state = "completed" if found else "diverged" if seed in report["diverged"] else "not finished"
        scores = [
            metric_value(name, value) if (value := (found or {}).get(name)) is not None else None for name in names
        ]
        rows.append([seed, state, *scores])
    return ["seed", "status", *names], rows


def metric_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Each metric: its final value, and its course over the epochs as a sparkline."""
    courses: dict[str, list[float]] = {}
    for event in report["epochs"]:
        for name, value in (event.get("metrics") or {}).items():
            if isinstance(value, int | float):
                courses.setdefault(name, []).append(value)
    finals = {name: course[-1] for name, course in courses.items()} | report["metrics"]
    return [(name, number(value), sparkline(courses.get(name, []))) for name, value in finals.items()]


def epoch_table(events: list[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the last epochs, the best in front where it is older; it carries a star."""
    shown = events[-EPOCHS_SHOWN:]
    best = next((event for event in reversed(events) if event.get("best")), None)
    if best is not None and not any(event is best for event in shown):
        shown = [best, *shown]
    names = list(dict.fromkeys(name for event in shown for name in event.get("metrics") or {}))
    rows = [
        [
            event.get("epoch"),
            *(number(event["metrics"][n]) if n in (event.get("metrics") or {}) else None for n in names),
            number(event["lr"]) if "lr" in event else None,
            "*" if event is best else None,
        ]
        for event in shown
    ]
    return ["epoch", *names, "lr", "best"], rows


def sparkline(values: list[float], width: int = 24) -> str:
    """The course of some values in at most `width` characters, from the lowest bar (the minimum) to the highest."""
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2:
        return ""
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)
