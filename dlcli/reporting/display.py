"""Displays of a run: three readers of its events, and how errors and tables are printed.

    display = open_display("auto")            JSON lines, plain lines or a live table: see `open_display`
    display.event({"event": "epoch", ...})    the same dicts as in events.jsonl
    display.progress(step, loss)              after every step; costs next to nothing
    display.close()                           always: it gives the cursor back

Nothing here imports torch, and Rich is imported only where there is a terminal to draw on. Writing never raises: when
nobody reads any more (`| head -1`, a full disk, a closed terminal) the run goes on silently.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from dlcli.reporting.output import Output, is_terminal
from dlcli.reporting.plain_display import PlainDisplay
from dlcli.runs.events import Display


def open_display(mode: str = "auto", *, stdout: TextIO | None = None, stderr: TextIO | None = None) -> Display:
    """mode "json": the events on stdout; "auto": a live table on a terminal, otherwise plain lines."""
    stdout, stderr = stdout or sys.stdout, stderr or sys.stderr
    if mode == "json":
        return JsonDisplay(stdout)
    if mode != "auto":
        raise ValueError(f"display mode {mode!r} is not known: auto or json")
    if is_terminal(stdout):
        from dlcli.reporting.rich_display import RichDisplay

        return RichDisplay(stdout)
    return PlainDisplay(stdout, stderr)


class JsonDisplay:
    """Every event as one line of strict JSON, and nothing else on that stream."""

    def __init__(self, stdout: TextIO):
        self._out = Output(stdout)

    def event(self, event: dict[str, Any]) -> None:
        try:
            line = json.dumps(event, allow_nan=False, default=str)
        except ValueError:  # a NaN, which JSON cannot say
            line = json.dumps(_without_nan(event), default=str)
        self._out.write(line + "\n")

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        self._out.flush()


def _without_nan(value: Any) -> Any:
    """The same, with null where a number is NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
