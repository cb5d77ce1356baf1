"""What the runs of several seeds came to together: mean, standard deviation and 95 % interval of each metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcli.evaluation.significance import deviation, mean, mean_interval
from dlcli.runs.folder import RunFolder


def member(group: RunFolder, seed: int) -> RunFolder:
    """The run of one seed, whether it is there already or not."""
    return RunFolder(group.path / f"seed-{seed}")


def gathered(group: RunFolder, seeds: Sequence[int], diverged: Sequence[int]) -> dict[str, Any]:
    """Over the completed runs: metrics (means), deviations (n - 1), intervals (Student's t), and each seed's own."""
    per_seed: dict[str, dict[str, float]] = {}
    seconds = 0.0
    epochs = set()
    for seed in seeds:
        summary = member(group, seed).read_summary() or {}
        seconds += summary.get("seconds") or 0.0
        if summary.get("status") == "completed":
            found = summary.get("metrics") or {}
            per_seed[str(seed)] = {name: value for name, value in found.items() if isinstance(value, int | float)}
            epochs.add(summary.get("epoch"))
    return {
        **statistics_of(list(per_seed.values())),
        "epoch": epochs.pop() if len(epochs) == 1 else None,
        "per_seed": per_seed,
        "diverged": list(diverged),
        "runs": [f"seed-{seed}" for seed in seeds],
        "seconds": seconds,
    }


def statistics_of(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean, deviation and interval of the metrics that all runs have; a single run has only its value."""
    names = [name for name in (rows[0] if rows else ()) if all(name in row for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    many = columns if len(rows) > 1 else {}
    return {
        "metrics": {name: mean(values) for name, values in columns.items()},
        "deviations": {name: deviation(values) for name, values in many.items()},
        "intervals": {name: list(mean_interval(values)) for name, values in many.items()},
    }
