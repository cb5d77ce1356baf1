"""A sweep as it is seen: lines in a pipe, a live table on a terminal. Both read the overseer's events.

No interim figure is shown: a trial has a value when it has been trained to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from dlcli.reporting.format import duration, flow, metric_name, metric_value
from dlcli.reporting.output import Output, clean, place, size_of
from dlcli.reporting.plain_display import pairs

SHOWN = 10  # trials, when it has ended
WORDS = {  # how a state is called
    "completed": "done",
    "pruned": "stopped early",
    "running": "running",
    "waiting": "waiting",
    "diverged": "diverged",
    "out of memory": "out of memory",
    "killed": "killed",
    "data": "failed: data",
    "bug": "failed",
}


def short_axes(axes: Sequence[str]) -> dict[str, str]:
    """Each axis under its shortest unmistakable name: optimizer.lr as lr, unless another ends alike."""
    ends = [axis.rsplit(".", 1)[-1] for axis in axes]
    return {axis: end if ends.count(end) == 1 else axis for axis, end in zip(axes, ends, strict=True)}


def short_value(text: str | None) -> str:
    """A value of a point for people: 0.0012345678 as 0.001235."""
    try:
        return f"{float(text or ''):.4g}"
    except ValueError:
        return text or ""


def figure(name: str, value: float) -> str:
    """An objective's value for people."""
    if name.startswith("val/"):
        return metric_value(name, value)
    return f"{value:,.0f}" if name == "parameters" else f"{value:.3g} {'ms' if name == 'latency' else 's'}"


def heading(name: str) -> str:
    return metric_name(name, short=True).removesuffix(" %") if name.startswith("val/") else name


class PlainSweep:
    """One line of key=value words per event, for pipes, CI and Slurm."""

    def __init__(self, stdout: TextIO, stderr: TextIO):
        self._out, self._err = Output(stdout), Output(stderr)
        self._objectives: list[str] = []

    def event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind in ("note", "warning"):
            self._err.write(f"{kind}: {clean(event['message'])}\n")
        elif kind in ("sweep_started", "sweep_resumed", "sweep_watched"):
            self._objectives = [objective["name"] for objective in event["objectives"]]
            keys = ("sweep", "experiment", "trials", "finished", "sampler", "pruner", "workers", "threads")
            facts = {key: event[key] for key in keys} | {"objective": ",".join(self._objectives)}
            self._out.write(pairs(kind.removeprefix("sweep_"), facts | {"space": " ".join(event["space"])}) + "\n")
        elif kind == "trial_finished":
            self._out.write(self._trial_line(event) + "\n")
        elif kind == "sweep_interrupted":
            self._err.write("".join(f"stopped, every trial saved\nnext: {command}\n" for command in event["next"]))
        elif kind == "sweep_finished":
            for member in event.get("front", ()):
                self._out.write(self._front_line(member) + "\n")
            self._out.write(finished_line(event) + "\n")
            for command in next_commands(event):
                self._err.write(f"next: {command}\n")

    def _front_line(self, member: Mapping[str, Any]) -> str:
        facts = {name.replace("/", "_"): member["metrics"].get(name) for name in self._objectives}
        return pairs("front", {"trial": member["trial"], **facts})

    def _trial_line(self, event: Mapping[str, Any]) -> str:
        facts: dict[str, Any] = {"trial": event["trial"], "state": event["state"]}
        facts |= dict(zip((name.replace("/", "_") for name in self._objectives), event["values"] or (), strict=False))
        facts |= {word.partition("=")[0]: word.partition("=")[2] for word in event["overrides"]}
        facts |= {"seconds": event["seconds"], "reuse_of": event["reuse_of"]}
        return pairs("", facts | {"reason": event["reason"]})

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        self._out.flush()
        self._err.flush()


def finished_line(event: Mapping[str, Any]) -> str:
    best = event["best"] or {}
    facts: dict[str, Any] = dict(event["trials"])
    if best:
        facts |= {"best": best["trial"]} | {name.replace("/", "_"): v for name, v in best["metrics"].items()}
    facts |= {"seconds": event["seconds"], "sweep": event["sweep"]}
    return pairs("finished", facts)


def next_commands(event: Mapping[str, Any]) -> list[str]:
    if not event["best"]:
        return [f"dlcli sweep top {event['name']}"]
    name = event["name"]
    return [
        f"dlcli sweep top {name}",
        f"dlcli sweep apply {name} --as {str(name).partition('-')[0]}_best",
        f"dlcli eval {name}/{event['best']['trial']}",
    ]


class LiveSweep:
    """For people: the best trials so far and what is running, redrawn a few times a second, and the end.

    known: `trial_event`s of what stood there before.
    """

    def __init__(self, stdout: TextIO, known: Iterable[Mapping[str, Any]] = ()):
        from rich.console import Console
        from rich.live import Live

        self._stream, self._out = stdout, Output(stdout)
        self._console = Console(file=self._out, force_terminal=True, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._start: dict[str, Any] = {}
        self._trials: dict[int, dict[str, Any]] = {event["trial"]: dict(event) for event in known}
        self._measure()

    def _measure(self) -> None:
        self._width, self._height = size_of(self._stream)
        self._console.size = (self._width, self._height)

    def event(self, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['event']}", lambda event: None)(event)

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Called several times a second; step: trials that are finished."""
        self._measure()
        if self._live.is_started:
            self._live.update(self._picture(), refresh=True)

    def close(self) -> None:
        """Leave the table if the sweep did not end: a pause, a fault, the end of watching."""
        if self._live.is_started:
            self._live.stop()
            self._console.print(self._table(self._order()[:SHOWN]))

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(clean(text), style=style, soft_wrap=True)

    def _flow(self, items: Sequence[str], *, style: str = "", indent: str = "  ") -> None:
        for line in flow([clean(item) for item in items], self._width, indent=indent):
            self._print(line, style)

    def _on_note(self, event: dict[str, Any]) -> None:
        self._print(f"  {event['message']}", "dim")

    _on_warning = _on_note

    def _on_sweep_started(self, event: dict[str, Any]) -> None:
        self._start = event
        first = [f"sweep {event['name']}", event["experiment"], place(event["sweep"])]
        self._flow(first, style="bold", indent="")
        goals = ", ".join(f"{'highest' if o['goal'] == 'max' else 'lowest'} {o['name']}" for o in event["objectives"])
        self._flow([goals, f"sampler {event['sampler']}", f"pruner {event['pruner']}", f"{event['trials']} trials"])
        workers = f"{event['workers']} worker{'s' if event['workers'] > 1 else ''}"
        at = f" on {', '.join(event['devices'])}" if event["devices"] else ""
        self._flow([f"{workers}{at}", *event["space"]])
        self._live.start()

    _on_sweep_resumed = _on_sweep_watched = _on_sweep_started

    def _on_trial_started(self, event: dict[str, Any]) -> None:
        self._trials[event["trial"]] = event

    _on_trial_finished = _on_trial_waiting = _on_trial_started

    def _on_sweep_interrupted(self, event: dict[str, Any]) -> None:
        self.close()
        self._print("■ stopped · every trial is saved", "bold")
        for command in event["next"]:
            self._print(f"  continue  {command}")

    def _on_sweep_finished(self, event: dict[str, Any]) -> None:
        self._live.stop()
        front = {member["trial"] for member in event.get("front", ())}
        order = sorted(self._order(), key=lambda trial: trial["trial"] not in front)  # the front first, else as it is
        self._console.print(self._table(order[: max(SHOWN, len(front))], front))
        self._print(f"✓ {counted(event['trials'])} · {duration(event['seconds'] or 0)}", "bold green")
        if mattered := what_mattered(event.get("importance") or {}, self._start["axes"]):
            self._print(f"  what mattered: {mattered}")
        if pictures := list((event.get("pictures") or {}).values()):
            names = ", ".join(str(picture).rpartition("/")[2] for picture in pictures)
            self._print(f"  pictures: {names} in {place(event['sweep'])}", "dim")
        label = "next"
        for command in next_commands(event):
            self._print(f"  {label:<10}{command}")
            label = ""

    def _order(self) -> list[dict[str, Any]]:
        """Completed ones, the best first; then those at work; then the rest, the newest first."""
        goal = self._start["objectives"][0]["goal"]
        sign = -1 if goal == "max" else 1

        def key(event: dict[str, Any]) -> tuple[int, float, int]:
            if event["values"]:
                return 0, sign * event["values"][0], event["trial"]
            return (1 if event["state"] in ("running", "waiting") else 2), 0.0, -event["trial"]

        return sorted(self._trials.values(), key=key)

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        order = self._order()
        running = [event for event in order if event["state"] == "running"]
        room = max(3, self._height - 8 - len(running))
        rest = [event for event in order if event["state"] != "running"][:room]
        return Group(self._table([*rest, *running]), Text(self._line(), style="dim"))

    def _line(self) -> str:
        """12/24 finished · 2 running · 0:42 left, at 14:32"""
        finished = sum(event["state"] not in ("running", "waiting") for event in self._trials.values())
        running = sum(event["state"] == "running" for event in self._trials.values())
        parts = [f"  {finished}/{self._start['trials']} finished", f"{running} running"]
        if taken := [event["seconds"] for event in self._trials.values() if event["seconds"]]:
            left_s = (self._start["trials"] - finished) * sum(taken) / len(taken) / self._start["workers"]
            parts.append(f"{duration(left_s)} left, until {datetime.now() + timedelta(seconds=left_s):%H:%M:%S}")
        return " · ".join(parts)[: self._width - 1]

    def _table(self, events: Sequence[Mapping[str, Any]], front: Container[int] = ()) -> Any:
        return trial_table(events, self._start["axes"], [o["name"] for o in self._start["objectives"]], front)


def trial_table(
    events: Sequence[Mapping[str, Any]], axes: Sequence[str], objectives: Sequence[str], front: Container[int] = ()
) -> Any:
    """A Rich table of trials; in green those of the front, or the first that has a value."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim bold")
    columns, rows = trial_rows(events, axes, objectives)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < number < len(columns) - 1 else "left", no_wrap=True)
    best = front or [next((event["trial"] for event in events if event["values"]), -1)]
    for event, row in zip(events, rows, strict=True):
        table.add_row(*(Text(clean(cell)) for cell in row), style="bold green" if event["trial"] in best else "")
    return table


def trial_rows(
    events: Sequence[Mapping[str, Any]], axes: Sequence[str], objectives: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: trial, what was varied, the objectives, the state."""
    names = short_axes(axes)
    columns = ["trial", *(names[axis] for axis in axes), *(heading(name) for name in objectives), "time", "state"]
    rows = []
    for event in events:
        values = event["values"] or [None] * len(objectives)
        shown = ["" if v is None else figure(n, v) for n, v in zip(objectives, values, strict=True)]
        point = [short_value(event["point"].get(axis)) if axis in event["point"] else "" for axis in axes]
        taken = "" if event["seconds"] is None else duration(event["seconds"])
        rows.append([str(event["trial"]), *point, *shown, taken, state_of(event)])
    return columns, rows


def what_mattered(importance: Mapping[str, float], axes: Sequence[str]) -> str:
    """lr 71 % · model 22 %, what has at least half a percent."""
    names = short_axes(axes)
    return " · ".join(
        f"{names.get(axis, axis)} {100 * share:.0f} %" for axis, share in importance.items() if share >= 0.005
    )


def state_of(event: Mapping[str, Any]) -> str:
    if event.get("reuse_of") is not None:
        return f"as trial {event['reuse_of']}"
    return WORDS.get(event["state"], event["state"])


def counted(trials: Mapping[str, int]) -> str:
    """9 done · 13 stopped early · 2 diverged"""
    parts = {"done": trials["completed"], "stopped early": trials["pruned"]}
    parts |= {WORDS[state]: trials[state] for state in trials if state not in ("completed", "pruned", "failed")}
    total = trials["completed"] + trials["pruned"] + trials["failed"]
    return " · ".join([f"{total} trials", *(f"{number} {word}" for word, number in parts.items() if number)])
