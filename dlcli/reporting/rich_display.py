"""The display on a terminal: a header, a table that grows by a row per epoch, one progress line below it, a summary.

The last rows and the progress line are the live region, everything above is printed for good, so a run of a thousand
epochs fits a small window. There is no thread: the loop's own calls redraw, four times a second at most.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dlcli import __version__
from dlcli.config.naming import option_of
from dlcli.reporting.format import (
    Columns,
    count,
    duration,
    flow,
    metric_name,
    metric_value,
    spark_value,
    sparkline,
    summary_of,
    time_shares,
    trainable,
)
from dlcli.reporting.output import Output, clean, encodable, place, size_of

REDRAW_S = 0.25
LIVE_ROWS = 10  # rows that can still change their star; a redraw costs some microseconds for each
BAR = 40  # columns at most
# Only attributes and the two colours that are legible on white and on black: the terminal's own colours do the rest.
LABEL, BEST, BAD = Style(dim=True), Style(color="green", bold=True), Style(color="red", bold=True)
PLAIN, STRONG = Style(), Style(bold=True)


class RichDisplay:
    """For people. It owns the only Live of the process and hides the cursor until `close` or the end of the run."""

    def __init__(self, stdout: TextIO):
        self._out = Output(stdout)
        # The caller has seen that this is a terminal, so no environment variable may say otherwise.
        self._console = Console(file=self._out, force_terminal=True, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]
        self._region = _Region()
        self._live = Live(
            self._region,
            console=self._console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            # A line printed by somebody else appears above the table. What goes to a file must stay there.
            redirect_stdout=stdout is sys.stdout,
            redirect_stderr=stdout is sys.stdout and sys.stderr.isatty(),
        )
        self._drawn = 0.0  # when the live region was drawn, by the monotonic clock
        self._due = 0.0  # when `progress` must do more than look at the clock
        self._boundary = -1  # the step that ends this epoch: evaluation follows
        self._base: tuple[int, float] | None = None  # step and time at the first step seen of this epoch
        self._first: tuple[int, float] | None = None  # the same of the run
        self._waiting: list[tuple[str, Style]] = []  # rows that have left the live region, not yet printed
        self._rows: list[dict[str, Any] | None] = []  # the live rows; None is a repeated heading
        self._history: list[dict[str, Any]] = []
        self._best: dict[str, Any] | None = None
        self._since_heading = 0
        self._columns = Columns((), None, 80)
        self._started: dict[str, Any] = {}
        self._ready: dict[str, Any] = {}
        self._width, self._height = 0, 0
        self._measure()
        atexit.register(self.close)

    # ------------------------------------------------------------------------------------------------------ the events

    def event(self, event: dict[str, Any]) -> None:
        show = getattr(self, f"_on_{event.get('event')}", None)
        if show is not None:
            show(event)

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        if monotonic() < self._due and step != self._boundary:
            return
        self._step(step, loss)

    def close(self) -> None:
        self._stop_live()
        atexit.unregister(self.close)

    def _on_run_started(self, event: dict[str, Any]) -> None:
        self._started = event
        version = (event.get("versions") or {}).get("dlcli", __version__)
        words = [f"dlcli {version}", str(event.get("experiment")), place(event.get("run"))]
        title = flow(words, self._width, indent="")
        self._print(Text(clean(title[0]), STRONG), *title[1:])
        config = event.get("config") or {}
        option = partial(option_of, config=config, choices=event.get("choices"))
        self._print(*flow(summary_of(config, option), self._width))
        if event.get("overrides"):
            self._labelled("changed", event["overrides"])

    def _on_run_resumed(self, event: dict[str, Any]) -> None:
        self._started = {"run": event.get("run")} | self._started
        self._print(
            *flow(
                [f"resumed {event.get('run')}", f"epoch {event.get('epoch')}, step {event.get('step'):,}"], self._width
            )
        )

    def _on_run_prepared(self, event: dict[str, Any]) -> None:
        self._ready = event
        device = event.get("device", "")
        if event.get("device_name") and event["device_name"] != device:
            device = f"{device} {event['device_name']}"
        parameters = ", ".join([f"{count(event.get('parameters'))} parameters", *trainable(event)])
        splits = [(split, event.get(f"{split}_examples")) for split in ("train", "val", "test")]
        sizes = " / ".join(f"{count(size)} {split}" for split, size in splits if size)
        source = ": ".join(str(event[key]) for key in ("source", "source_reason") if event.get(key))
        computes = str(event.get("runtime_reason") or event.get("precision"))
        items = [device, computes, parameters, sizes, source]
        self._print(*flow([item for item in items if item], self._width), "")
        self._region.progress = ("  starting …", LABEL)
        self._live.start(refresh=True)

    def _on_unfrozen(self, event: dict[str, Any]) -> None:
        groups, trained = " and ".join(event.get("groups") or ()), count(event.get("trainable"))
        self._message({"message": f"epoch {event.get('epoch')} trains {groups} too: {trained} parameters trainable"})

    def _on_epoch(self, event: dict[str, Any]) -> None:
        names = [str(name) for name in event.get("metrics") or {}]
        more = not set(names) <= set(self._columns.metrics)
        if more:
            self._columns = Columns({*self._columns.metrics, *names}, self._ready.get("monitor"), self._width)
        if None not in self._rows if more else self._since_heading >= max(self._height - 6, 10):
            self._rows.append(None)
            self._since_heading = 0
        self._history.append(event)
        self._rows.append(event)
        self._since_heading += 1
        if event.get("best"):
            self._best = event
        while len(self._rows) > min(LIVE_ROWS, max(self._height - 6, 1)):
            self._waiting.append(self._row(self._rows.pop(0)))
        self._region.rows = [self._row(row) for row in self._rows]
        self._base, self._due, self._boundary = None, 0.0, -1
        if monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def _on_note(self, event: dict[str, Any]) -> None:
        self._message(event)

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._message(event, "warning")

    def _message(self, event: dict[str, Any], label: str = "") -> None:
        words = clean(event.get("message")).split(" ")
        if label:
            self._labelled(label, words, between=" ", style=STRONG)
        else:
            self._print(*flow(words, self._width, between=" "))
        if event.get("hint"):
            self._labelled("hint", clean(event["hint"]).split(" "), between=" ")

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        self._stop_live()
        self._print("")
        sparks = self._sparklines()
        if sparks:
            self._print(*flow(sparks, self._width, between="    "), "")
        self._print_result(event)
        run = event.get("run") or self._started.get("run")
        if run and (Path(run) / "curves.png").is_file():
            self._labelled("curves", [place(Path(run) / "curves.png")])
        commands = list(event.get("next") or ())
        if event.get("status") == "interrupted" and not commands:
            commands = [f"dlcli resume {self._started.get('name') or Path(run or 'latest').name}"]
        label = "continue" if event.get("status") == "interrupted" else "next"
        for command in commands:
            self._labelled(label, [command])
            label = ""

    def _print_result(self, event: dict[str, Any]) -> None:
        """One line: how it ended, the scores, the time, the memory."""
        status, metrics = event.get("status"), event.get("metrics") or {}
        monitor = str(self._ready.get("monitor"))
        items = []
        if status == "completed":
            mark, style = "✓ ", BEST
        else:
            mark, style = ("■ ", STRONG) if status == "interrupted" else ("✗ ", BAD)
            of = f" of {count(self._ready['steps'])}" if self._ready.get("steps") else ""
            word = "stopped" if status == "interrupted" else "failed"
            at = f"at epoch {event.get('epoch')}, step {count(event.get('step'))}{of}"
            items += [f"{word} {at if event.get('step') else 'before the first step'}"]
            items += [str(event["reason"])] if event.get("reason") else []
            items += ["saved, resumes exactly"] if status == "interrupted" and event.get("checkpoint") else []
        if monitor in metrics:
            at = f" at epoch {event['best_epoch']}" if event.get("best_epoch") is not None else ""
            items.append(f"best {metric_name(monitor)} {metric_value(monitor, metrics[monitor])}{at}")
        tests = [name for name in metrics if name.startswith("test/")]
        items += [f"{metric_name(name)} {metric_value(name, metrics[name])}" for name in tests]
        items += [duration(event["seconds"])] if event.get("seconds") is not None else []
        items += [f"peak {count(event['peak_memory_mb'])} MB"] if event.get("peak_memory_mb") else []
        lines = flow([clean(item) for item in items] or [clean(status)], self._width)
        self._print(Text.assemble((mark, style), (lines[0][2:], STRONG)), *lines[1:])
        if shares := time_shares(event):
            self._labelled("time", shares)

    def _sparklines(self) -> list[str]:
        """The curve of the score and of the training loss, each between its first and last value."""
        losses = [name for name in self._columns.metrics if name.startswith("train/loss")]
        names: list[str] = [name for name in (self._ready.get("monitor"), *losses[:1]) if name]
        sparks, ascii_only = [], encodable("▁█", self._out.encoding) != "▁█"
        for name in dict.fromkeys(names):
            values = [v for e in self._history if isinstance(v := (e.get("metrics") or {}).get(name), int | float)]
            if len(values) > 1:
                first, last = spark_value(name, values[0]), spark_value(name, values[-1])
                label = metric_name(name, short=True).removesuffix(" %")
                sparks.append(f"{label}  {first} {sparkline(values, ascii_only=ascii_only)} {last}")
        return sparks

    # ------------------------------------------------------------------------------------------------- the live region

    def _step(self, step: int, loss: Callable[[], float]) -> None:
        """Note where the epoch begins; draw when it is time, and before a long evaluation."""
        now = monotonic()
        length = self._ready.get("steps_per_epoch")
        if self._base is None:
            self._base = (step, now)
            self._first = self._first or self._base
            self._boundary = -(-step // length) * length if length else -1
        at_end = step == self._boundary
        if at_end:
            self._boundary = -1
        if now - self._drawn < (0.05 if at_end and now - self._base[1] > 1 else REDRAW_S):
            self._due = self._drawn + REDRAW_S
            return
        self._region.progress = (self._progress_line(step, loss(), now, at_end), PLAIN)
        self._draw()

    def _progress_line(self, step: int, loss: float, now: float, at_end: bool) -> str:
        """epoch 7/30 ━━━━━━──── 12/20  loss 0.2871  0:04 left  run 1:20, without its end where the window is narrow."""
        assert self._base is not None
        assert self._first is not None
        length, epochs, steps = (self._ready.get(key) for key in ("steps_per_epoch", "epochs", "steps"))
        shown = f"loss {loss:.4f}"
        if not length:
            return f"  step {step:,}  {shown}"[: self._width - 1]
        epoch, done = (step - 1) // length + 1, (step - 1) % length + 1
        left = f"  epoch {epoch}/{epochs} " if epochs else f"  epoch {epoch} "
        rest = [f" {done:,}/{length:,}", f"  {shown}"]
        if at_end:
            rest.append("  evaluating")
        elif step > self._base[0]:
            per_step = (now - self._base[1]) / (step - self._base[0])
            rest.append(f"  {_clock(per_step * (length - done))} left")
        if steps and step > self._first[0] and steps > length:
            # Over the whole run, so that evaluation and saving count.
            rest.append(f"  run {_clock((now - self._first[1]) / (step - self._first[0]) * (steps - step))}")
        room = self._width - 1
        while len(rest) > 2 and len(left) + sum(map(len, rest)) + 10 > room:
            rest.pop()
        bar = max(0, min(BAR, room - len(left) - sum(map(len, rest))))
        filled = bar * done // length
        return (left + "━" * filled + "─" * (bar - filled) + "".join(rest))[:room]

    def _draw(self) -> None:
        """Print the rows that have left the region, and the region again: only this method redraws."""
        self._measure()
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._console.print(_Rows(waiting))  # Live draws its region again below what is printed
        else:
            self._live.refresh()
        self._drawn = monotonic()
        self._due = self._drawn + REDRAW_S

    def _stop_live(self) -> None:
        """Take the live region away and leave its rows; the cursor is shown again."""
        if self._live.is_started:
            self._region.rows, self._region.progress = [], ("", PLAIN)
            self._live.stop()
        rows = self._waiting + [self._row(row) for row in self._rows]
        self._waiting, self._rows = [], []
        if rows:
            self._console.print(_Rows(rows))

    def _row(self, event: dict[str, Any] | None) -> tuple[str, Style]:
        if event is None:
            return encodable(self._columns.heading(), self._out.encoding), LABEL
        is_best = event is self._best
        return encodable(self._columns.row(event, is_best), self._out.encoding), BEST if is_best else PLAIN

    def _measure(self) -> None:
        """Follow the size of the window."""
        size = size_of(self._out)
        if size != (self._width, self._height):
            self._width, self._height = size
            self._console.size = size
            self._columns = Columns(self._columns.metrics, self._ready.get("monitor"), self._width)
            self._region.rows = [self._row(row) for row in self._rows]

    def _print(self, *lines: str | Text) -> None:
        """Lines that stay. A single word longer than the window is left to the terminal to fold: it can be copied."""
        for line in lines:
            self._console.print(Text(clean(line)) if isinstance(line, str) else line, soft_wrap=True)

    def _labelled(self, label: str, words: Sequence[str], *, between: str = "  ", style: Style = LABEL) -> None:
        lines = flow([clean(word) for word in words], self._width, indent=" " * 12, between=between)
        self._print(Text.assemble((f"  {label:<10}", style), lines[0][12:]), *lines[1:])


class _Rows:
    """Finished lines of text, one style each: cheaper than a Rich table by far."""

    def __init__(self, rows: list[tuple[str, Style]]):
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style in self.rows:
            yield Segment(text, style)
            yield Segment.line()


class _Region(_Rows):
    """The live region: rows that may still lose their star, an empty line, the progress line."""

    def __init__(self) -> None:
        super().__init__([])
        self.progress: tuple[str, Style] = ("", PLAIN)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        yield from super().__rich_console__(console, options)
        if self.rows:
            yield Segment.line()
        yield Segment(encodable(self.progress[0], console.encoding), self.progress[1])


def _clock(seconds: float) -> str:
    """0:04, 12:30, 1:02:30"""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
