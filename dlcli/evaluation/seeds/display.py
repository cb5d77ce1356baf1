"""What is seen of several seeds: a line for each, then a table, and what they come to together.

Readers of the same events as in dlcli.reporting.display. Those show every epoch of one run; here a run is one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, TextIO

from dlcli.config.naming import option_of
from dlcli.reporting.display import open_display
from dlcli.reporting.format import (
    count,
    duration,
    flow,
    interval,
    metric_name,
    metric_spread,
    metric_value,
    ran,
    summary_of,
    told_seeds,
)
from dlcli.reporting.output import clean, is_terminal, place, size_of
from dlcli.reporting.plain_display import PlainDisplay, pairs
from dlcli.reporting.tables import print_table
from dlcli.runs.events import Display

REDRAW_S = 0.25


def open_seeds_display(*, as_json: bool) -> Display:
    """All events as JSON; otherwise a line a seed, with progress below it on a terminal."""
    if as_json:
        return open_display("json")
    return TerminalSeeds(sys.stdout, sys.stderr) if is_terminal(sys.stdout) else PlainSeeds(sys.stdout, sys.stderr)


class PlainSeeds(PlainDisplay):
    """`key=value` words: the start, the first run's facts, a line per seed; warnings and advice once, on stderr."""

    def __init__(self, stdout: TextIO, stderr: TextIO):
        super().__init__(stdout, stderr)
        self._said: set[str] = set()
        self._seed: int | None = None
        self._is_prepared = False

    def event(self, event: dict[str, Any]) -> None:
        kind = str(event.get("event"))
        show = getattr(self, f"_on_{kind}", None)
        if show is not None:
            show(event)

    def _on_seeds_started(self, event: dict[str, Any]) -> None:
        facts = {"run": event["run"], "experiment": event["experiment"]}
        facts |= {"model": option_of("model", event["config"], event.get("choices"))}
        facts |= {"seeds": told_seeds(event["seeds"]).replace(" ", "")}
        self._out.write(pairs("start", facts | {"changed": " ".join(event.get("overrides") or ()) or None}) + "\n")

    def _on_seed_started(self, event: dict[str, Any]) -> None:
        self._seed = event["seed"]

    def _on_run_prepared(self, event: dict[str, Any]) -> None:
        if not self._is_prepared:
            super().event(event)
        self._is_prepared = True

    def _on_note(self, event: dict[str, Any]) -> None:
        """Once, though every run says it with its own name."""
        message = clean(event.get("message", "")).replace(f"/seed-{self._seed}", "")
        if message not in self._said:
            self._said.add(message)
            super().event(event)

    _on_warning = _on_note

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        facts = {"status": event.get("status"), "reason": event.get("reason"), "epoch": event.get("epoch")}
        facts |= {"best_epoch": event.get("best_epoch")}
        facts |= {name.replace("/", "_"): value for name, value in (event.get("metrics") or {}).items()}
        self._out.write(pairs(f"seed={self._seed}", facts | {"seconds": event.get("seconds")}) + "\n")

    def _on_seeds_finished(self, event: dict[str, Any]) -> None:
        print_seeds(event)
        facts = {"status": event["status"], "reason": event.get("reason"), "seconds": event["seconds"]}
        self._out.write(pairs("done", {**facts, "seeds": ran(event), "run": event["run"]}) + "\n")
        for command in event["next"]:
            self._err.write(f"next: {clean(command)}\n")


class TerminalSeeds(PlainSeeds):
    """For people: a header, a line per seed, one line of progress that comes and goes."""

    def __init__(self, stdout: TextIO, stderr: TextIO):
        super().__init__(stdout, stderr)
        self._drawn, self._progress, self._number = 0.0, "", ""  # when and what was drawn; which of how many runs
        self._steps: int | None = None

    def _on_seeds_started(self, event: dict[str, Any]) -> None:
        self._show(
            *flow(
                [f"{event['experiment']} with {len(event['seeds'])} seeds", place(event["run"])],
                self._width(),
                indent="",
            )
        )
        option = partial(option_of, config=event["config"], choices=event.get("choices"))
        facts = summary_of({**event["config"], "seed": None}, option)
        self._show(*flow([*facts, f"seeds {told_seeds(event['seeds'])}"], self._width()))
        if event.get("overrides"):
            lines = flow(event["overrides"], self._width(), indent=" " * 12, between="  ")
            self._show(f"  {'changed':<10}{lines[0][12:]}", *lines[1:])

    def _on_seed_started(self, event: dict[str, Any]) -> None:
        self._seed, self._number = event["seed"], f"{event['number']}/{event['of']}"
        if not event["resumes"]:  # the session says that it resumes
            self._draw(f"  seed {self._seed} ({self._number}) starting …")

    def _on_run_prepared(self, event: dict[str, Any]) -> None:
        self._steps = event.get("steps")
        if self._is_prepared:
            return
        self._is_prepared = True
        sizes = " / ".join(f"{count(event[f'{split}_examples'])} {split}" for split in ("train", "val", "test"))
        items = [str(event.get("device")), str(event.get("runtime_reason") or event.get("precision"))]
        items += [f"{count(event.get('parameters'))} parameters", sizes]
        self._show(*flow(items, self._width()), "")

    def _on_epoch(self, event: dict[str, Any]) -> None:
        scores = [f"{metric_name(n)} {metric_value(n, v)}" for n, v in event["metrics"].items() if n.startswith("val/")]
        self._draw("  " + " · ".join([f"seed {self._seed} ({self._number})", f"epoch {event['epoch']}", *scores]))

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        if monotonic() - self._drawn >= REDRAW_S:
            of = f"/{self._steps:,}" if self._steps else ""
            self._draw(f"  seed {self._seed} ({self._number}) · step {step:,}{of} · loss {loss():.4f}")

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        is_done = event.get("status") == "completed"
        items = [f"seed {self._seed}"] + ([] if is_done else [str(event.get("status"))])
        items += [str(event["reason"])] if event.get("reason") and not is_done else []
        if is_done:
            items += [f"{metric_name(n)} {metric_value(n, v)}" for n, v in _scores(event["metrics"]).items()]
        items += [duration(event["seconds"])]
        self._show(("✓ " if is_done else "✗ ") + flow(items, 10_000, indent="")[0])

    def _on_seeds_finished(self, event: dict[str, Any]) -> None:
        self._show("")
        print_seeds(event)
        mark = {"completed": "✓", "interrupted": "■"}.get(event["status"], "✗")
        items = [ran(event), duration(event["seconds"]), place(event["run"])]
        items += [str(event["reason"])] if event.get("reason") else []
        self._show("", f"{mark} {flow(items, 10_000, indent='')[0]}")
        for number, command in enumerate(event["next"]):
            self._show(f"  {'' if number else 'next':<10}{clean(command)}")

    def _advise(self, line: str, hint: str | None) -> None:
        self._draw("")
        super()._advise(line, hint)

    def _width(self) -> int:
        return size_of(self._out)[0]

    def _show(self, *lines: str) -> None:
        """Lines that stay."""
        self._draw("")
        for line in lines:
            self._out.write(f"{clean(line)}\n")

    def _draw(self, line: str) -> None:
        """The line of progress, cut at the window; empty takes it away."""
        if line or self._progress:
            self._progress, self._drawn = line, monotonic()
            self._out.write(f"\r\x1b[2K{clean(line)[: self._width() - 1]}" if line else "\r\x1b[2K")

    def close(self) -> None:
        self._draw("")
        super().close()


def print_seeds(event: Mapping[str, Any]) -> None:
    """The table of the seeds, then of what they come to: mean, standard deviation, 95 % interval of the mean."""
    names = list(event["metrics"])
    if not names:
        return
    rows = [[seed, *(metric_value(n, row.get(n)) for n in names)] for seed, row in event["per_seed"].items()]
    print_table("", ["seed", *map(metric_name, names)], rows)
    if not event["deviations"]:
        return
    print()
    spreads = event["deviations"], event["intervals"]
    rows = [
        [metric_name(n), metric_spread(n, event["metrics"][n], spreads[0][n]), interval(n, spreads[1][n])]
        for n in names
    ]
    print_table("", ["metric", f"mean ± sd, {ran(event)}", "95 % interval of the mean"], rows)


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the test split, where there are any: a line has room for two."""
    held_out = {name: value for name, value in metrics.items() if name.startswith("test/")}
    return held_out or dict(metrics)
