"""What `dlcli sweep status` and `dlcli sweep top` print."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dlcli.reporting.format import duration, flow
from dlcli.reporting.output import Output, clean, is_terminal, place, width_of
from dlcli.reporting.tables import print_table
from dlcli.runs.find import find_sweep
from dlcli.sweep.ledger.address import VARIABLE, checked_address
from dlcli.sweep.results.drawing import draw_once
from dlcli.sweep.status.display import (
    counted,
    figure,
    heading,
    next_commands,
    short_axes,
    short_value,
    trial_rows,
    what_mattered,
)
from dlcli.sweep.status.events import trial_event
from dlcli.sweep.status.progress import status
from dlcli.sweep.status.reading import Reader, open_reader
from dlcli.sweep.study.definition import Definition, read_definition
from dlcli.sweep.study.ranking import front, ranked
from dlcli.sweep.study.trial_record import Record

NUM_SEEDS = 5
GAP = 2  # columns between two of a table
STAR = "★"
ALIVE = {True: "at work", False: "gone", None: "elsewhere"}

Table = tuple[list[str], list[list[str]]]


# -------------------------------------------------------------------------------------------------------------- status


def print_status(name: str | None, *, outputs: Path, storage: str | None, as_json: bool) -> None:
    reader = _reader(name, outputs, storage)
    found = status(reader, reader.records())
    if as_json:
        print_table("", (), (), json_rows=[found])
        return
    definition = reader.definition
    goals = ", ".join(f"{'highest' if o.goal == 'max' else 'lowest'} {o.name}" for o in definition.objectives)
    facts = [goals, f"sampler {definition.sampler}", f"pruner {definition.pruner}", f"{definition.trials} trials"]
    _say([f"sweep {definition.name}", definition.experiment, place(reader.folder)], indent="")
    _say(facts)
    _say(_course(definition, found))
    if found["best"]:
        so_far = " so far" if found["finished"] < found["of"] else ""
        _say([f"best{so_far}: trial {found['best']['trial']}", *_figures(definition, found["best"]["metrics"])])
    if found["paused"]:
        _say([f"paused: {found['paused']}"])
    if found["running"]:
        columns, rows = _running_table(definition, found["running"])
        print_table("", *_fitting((columns, rows), ["since", *columns[-5:0:-1]]))
    _advise(found["next"])


def _course(definition: Definition, found: Mapping[str, Any]) -> list[str]:
    """12 of 24 finished · 9 done · 3 stopped early · 2 running · 12.0 s each · 1 min 05 s left, until 14:32:10"""
    _, *ended = counted(found["trials"]).split(" · ")
    lost = sum(trial["alive"] is False for trial in found["running"])
    parts = [f"{found['finished']} of {found['of']} finished", *ended]
    for number, word in (
        (len(found["running"]) - lost, "running"),
        (lost, "lost by a worker"),
        (found["waiting"], "waiting"),
    ):
        parts += [f"{number} {word}"] if number else []
    parts += [f"{found['workers']} worker{'s' * (found['workers'] > 1)}"] if found["workers"] else []
    parts += [f"{duration(found['mean_s'])} each"] if found["mean_s"] is not None else []
    if found["until"]:
        until = datetime.fromisoformat(found["until"])
        clock = f"{until:%H:%M:%S}" if until.date() == datetime.now().date() else f"{until:%Y-%m-%d %H:%M}"
        parts.append(f"{duration(found['left_s'])} left, until {clock}")
    return parts


def _running_table(definition: Definition, running: Sequence[Mapping[str, Any]]) -> Table:
    axes = [axis.key for axis in definition.space.axes]
    names = short_axes(axes)
    columns = ["trial", *(names[axis] for axis in axes), "since", "epoch", "worker", "state"]
    rows = []
    for trial in running:
        point = [short_value(trial["point"].get(axis)) for axis in axes]
        epoch = f"{trial['epoch'] or 0}/{trial['epochs'] or '?'}"
        since = str(trial["started"] or "")[11:19]
        rows.append(
            [str(trial["trial"]), *point, since, epoch, f"{trial['host']}:{trial['pid']}", ALIVE[trial["alive"]]]
        )
    return columns, rows


# ----------------------------------------------------------------------------------------------------------------- top


def print_top(name: str | None, *, limit: int, outputs: Path, storage: str | None, as_json: bool) -> None:
    reader = _reader(name, outputs, storage)
    definition, records = reader.definition, reader.records()
    order, chosen = _order(definition, records)
    drawn = draw_once(reader.folder, definition, records)
    if as_json:
        rows = [trial_event(reader.folder, definition, r) | {"front": r.number in chosen} for r in order[:limit]]
        end = {"event": "sweep_top", "sweep": str(reader.folder), "name": definition.name, **drawn}
        print_table("", (), (), json_rows=[*({"event": "trial", **row} for row in rows), end])
        return
    if not order:
        _say([f"{definition.name}: no trial has been trained to its end yet"], indent="")
        _advise([f"dlcli sweep status {definition.name}"])
        return
    table = _top_table(reader.folder, definition, order[:limit], chosen)
    shares: dict[str, float] = drawn["importance"]
    least = sorted(
        short_axes([axis.key for axis in definition.axes]).items(), key=lambda item: shares.get(item[0], 0.0)
    )
    print_table(f"Best of {definition.name}", *_fitting(table, ["time", *(short for _, short in least)]))
    if len(definition.objectives) > 1:
        _say([f"{STAR} no other trial is as good in all of {', '.join(o.name for o in definition.objectives)}"])
    if drawn["pictures"]:
        _tell_importance(definition, shares, len(order))
    for kind, path in drawn["pictures"].items():
        _say([f"{kind:<11} {place(path)}"])
    _advise(_commands(definition, order[0]))


def _order(definition: Definition, records: Sequence[Record]) -> tuple[list[Record], set[int]]:
    """Completed trials, the front first where there are several objectives, and the numbers of the front."""
    order = ranked(records, definition.objectives)
    if len(definition.objectives) == 1:
        return order, {record.number for record in order[:1]}
    chosen = {record.number for record in front(records, definition.objectives)}
    return sorted(order, key=lambda record: record.number not in chosen), chosen


def _top_table(folder: Path, definition: Definition, order: Sequence[Record], chosen: set[int]) -> Table:
    events = [trial_event(folder, definition, record) for record in order]
    axes = [axis.key for axis in definition.space.axes]
    columns, rows = trial_rows(events, axes, [objective.name for objective in definition.objectives])
    marked = [[f"{STAR} {row[0]}" if int(row[0]) in chosen else row[0], *row[1:-1]] for row in rows]  # all are done
    return columns[:-1], marked


def _tell_importance(definition: Definition, shares: Mapping[str, float], num: int) -> None:
    from dlcli.sweep.results.importance import FEWEST_TRIALS

    names = short_axes([axis.key for axis in definition.axes])
    if shares:
        _say(f"what mattered: {what_mattered(shares, list(names))}".split(" · "))
    elif num < FEWEST_TRIALS:
        _say([f"{num} results do not show what mattered: it takes {FEWEST_TRIALS}"])
    else:
        _say(["the results do not show what mattered: they, or the settings, are all alike"])


def _commands(definition: Definition, best: Record) -> list[str]:
    _, apply, evaluate = next_commands({"name": definition.name, "best": {"trial": best.number}})
    words = [*definition.words_of(best.point), "--seeds", str(NUM_SEEDS)]
    words += ["--config-dir", definition.config_dir] if definition.config_dir else []
    words += [word for trusted in definition.trusted for word in ("--trust", trusted)]
    return [apply, evaluate, shlex.join(["dlcli", "train", *words])]


# ------------------------------------------------------------------------------------------------------------ pictures


# --------------------------------------------------------------------------------------------------------------- words


def _reader(name: str | None, outputs: Path, storage: str | None) -> Reader:
    folder = find_sweep(name, outputs)
    address = storage or os.environ.get(VARIABLE)
    return open_reader(folder, read_definition(folder), checked_address(address) if address else None)


def _figures(definition: Definition, metrics: Mapping[str, float]) -> list[str]:
    return [
        f"{heading(o.name).removesuffix(' %')} {figure(o.name, metrics[o.name])}"
        for o in definition.objectives
        if o.name in metrics
    ]


def _say(items: Sequence[str], *, indent: str = "  ") -> None:
    lines = flow([clean(item) for item in items], width_of(sys.stdout), indent=indent)
    Output(sys.stdout).write("".join(f"{line}\n" for line in lines))


def _advise(commands: Sequence[str]) -> None:
    label = "next"
    for command in commands:
        Output(sys.stdout).write(f"  {label:<6}{clean(command)}\n")
        label = ""


def _fitting(table: Table, least: Sequence[str]) -> Table:
    """The table without the columns that have no room, in the order of `least`; a file or a pipe gets every column."""
    columns, rows = table
    width = width_of(sys.stdout) if is_terminal(sys.stdout) or "COLUMNS" in os.environ else 10_000
    left_out = []
    for name in least:
        widths = [max(map(len, column)) + GAP for column in zip(columns, *rows, strict=True)]
        if sum(widths) <= width:
            break
        place_of = columns.index(name)
        columns, rows = _without(columns, place_of), [_without(row, place_of) for row in rows]
        left_out.append(name)
    if left_out:
        print(f"note: no room for {', '.join(left_out)}: widen the window, or add --json", file=sys.stderr)
    return columns, rows


def _without(cells: list[str], number: int) -> list[str]:
    return cells[:number] + cells[number + 1 :]
