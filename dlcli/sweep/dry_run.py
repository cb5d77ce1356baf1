"""What a sweep would be: its trials, and from 20 measured steps of each architecture the time and the disk it takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from dlcli.config import compose_command
from dlcli.reporting.format import duration
from dlcli.reporting.tables import print_table
from dlcli.sweep.request import Asked
from dlcli.sweep.status.display import short_axes, short_value
from dlcli.sweep.study.points import point

SHOWN = 20  # trials
MOST_MEASURED = 8  # architectures


def show(asked: Asked, *, workers: int, as_json: bool) -> int:
    """Print the trials and the plan; nothing is started, nothing is kept."""
    definition = asked.definition
    points = list(_points(asked))
    plan = _plan(asked, workers)
    if as_json:
        for number, found in enumerate(points):
            print(json.dumps({"event": "trial_planned", "trial": number, "overrides": definition.space.words(found)}))
        print(json.dumps({"event": "sweep_planned", **plan}))
        return 0
    axes = [axis.key for axis in definition.space.axes]
    names = short_axes(axes)
    rows = [
        [i, *(short_value(found.get(axis)) if axis in found else "" for axis in axes)] for i, found in enumerate(points)
    ]
    print_table("The first trials", ["trial", *(names[axis] for axis in axes)], rows[:SHOWN])
    if len(points) > SHOWN or len(points) < definition.trials:
        print(
            f"... {definition.trials} in all; --sampler {definition.sampler} chooses the rest as results come in"
            if len(points) < definition.trials
            else f"... {definition.trials} in all"
        )
    for note in asked.notes:
        print(note)
    print()
    for line in _lines(plan):
        print(line)
    return 0


def _points(asked: Asked) -> Iterator[dict[str, str]]:
    """Those that need no results: all of a grid or a random search, else the first ones."""
    definition = asked.definition
    if definition.sampler in ("grid", "random", "quasi-random"):
        yield from (point(definition, number) for number in range(definition.trials))
    elif len(definition.objectives) == 1 and definition.sampler in ("tpe", "gp"):
        yield from (point(definition, number, "quasi-random") for number in range(definition.starts))


def _plan(asked: Asked, workers: int) -> dict[str, Any]:
    """Seconds and MB (of 2^20 bytes). Pruning makes it shorter, workers that share cores make it longer."""
    from dlcli.planning.plan import forecast
    from dlcli.training import completing
    from dlcli.training.allow_list import Builder

    definition = asked.definition
    architectures = definition.space.group_points()
    forecasts = []
    for begun in architectures[:MOST_MEASURED]:
        axes = [axis for axis in definition.space.axes if axis.key not in begun and axis.applies(begun)]
        middle = begun | {axis.key: axis.at(0.5) for axis in axes}
        composed = compose_command(definition.words_of(middle), search=definition.search(), command="sweep")
        tree = completing.complete(composed.tree)
        forecasts.append(forecast(tree, Builder.for_search(composed.search, definition.trusted)))
    each = statistics.mean(f.train_s + f.evaluation_s for f in forecasts)
    kept = min(definition.keep, definition.trials) + workers
    checkpoints = max(f.disk_mb for f in forecasts)
    return {
        "trials": definition.trials,
        "workers": workers,
        "seconds_each": each,
        "low_s": min(f.low_s for f in forecasts) * definition.trials / workers,
        "high_s": max(f.high_s for f in forecasts) * definition.trials / workers,
        "seconds": each * definition.trials / workers + max(f.start_s for f in forecasts),
        "disk_mb": kept * checkpoints,
        "kept": definition.keep,
        "peak_memory_mb": workers * max(f.peak_memory_mb for f in forecasts),
        "measured_steps": sum(f.measured_steps for f in forecasts),
        "architectures": len(forecasts),
    }


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    until = datetime.now() + timedelta(seconds=plan["seconds"])
    trials = f"{plan['trials']} trials of {duration(plan['seconds_each'])}"
    yield (
        f"plan, from {plan['measured_steps']} measured steps: {trials}"
        f" on {plan['workers']} worker{'s' if plan['workers'] > 1 else ''}: about {duration(plan['seconds'])},"
        f" until {until:%H:%M} ({duration(plan['low_s'])} to {duration(plan['high_s'])}; pruning makes it shorter)"
    )
    yield (
        f"disk at most {plan['disk_mb']:,.0f} MB: the weights of the best {plan['kept']} trials, and of those being"
        f" trained · memory about {plan['peak_memory_mb']:,.0f} MB"
    )
