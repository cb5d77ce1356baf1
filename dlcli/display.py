"""What a person or a program sees of a run: three readers of its events, and how errors and tables are printed.

    display = open_display("auto")            JSON lines, plain lines or a live table: see `open_display`
    display.event({"event": "epoch", ...})    the same dicts that stand in events.jsonl
    display.progress(step, loss)              after every step; costs next to nothing
    display.close()                           always: it gives the cursor back

Nothing here imports torch, and Rich is imported only where there is a terminal to draw on. Writing never raises: when
nobody reads any more (`| head -1`, a full disk, a closed terminal) the run goes on silently.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from dlcli.errors import ConfigError, DlcliError, printable

MESSAGE_LIMIT = 2000  # characters of a message or path; a value inside a message was cut by whoever wrote it
ASCII = str.maketrans(
    {
        "✗": "x",
        "✓": "+",
        "★": "*",
        "■": "#",
        "·": "-",
        "×": "x",
        "→": ">",
        "…": "~",
        "–": "-",
        "±": "+-",
        "━": "#",
        "─": "-",
    }
)


class Display(Protocol):
    def event(self, event: dict[str, Any]) -> None:
        """Show one event of the run."""

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """`step` updates are done. `loss` waits for the device, so it is called only when something is drawn."""

    def close(self) -> None:
        """Leave the terminal as it was found; may be called more than once."""


def open_display(mode: str = "auto", *, stdout: TextIO | None = None, stderr: TextIO | None = None) -> Display:
    """mode "json": the events on stdout; "auto": a live table on a terminal, otherwise plain lines."""
    stdout, stderr = stdout or sys.stdout, stderr or sys.stderr
    if mode == "json":
        return JsonDisplay(stdout)
    if mode != "auto":
        raise ValueError(f"display mode {mode!r} is not known: auto or json")
    if is_terminal(stdout):
        from dlcli.terminal import RichDisplay

        return RichDisplay(stdout)
    return PlainDisplay(stdout, stderr)


# ------------------------------------------------------------------------------------------------------------ displays


class Silent:
    """Shows nothing: on ranks that others speak for."""

    def event(self, event: dict[str, Any]) -> None:
        pass

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        pass


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


class PlainDisplay:
    """One line of `key=value` words per fact, for pipes, CI and Slurm; warnings and advice go to stderr."""

    def __init__(self, stdout: TextIO, stderr: TextIO):
        self._out, self._err = Output(stdout), Output(stderr)
        self._lines: dict[str, Callable[[dict[str, Any]], str]] = {
            "run_started": _start_line,
            "run_resumed": _resumed_line,
            "run_prepared": _ready_line,
            "unfrozen": _unfrozen_line,
            "epoch": _epoch_line,
            "evaluated": _evaluated_line,
            "run_finished": _done_line,
        }

    def event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind in ("note", "warning"):
            self._advise(f"{kind}: {clean(event.get('message', ''))}", event.get("hint"))
        elif kind in self._lines:
            self._out.write(self._lines[kind](event) + "\n")
        if kind == "run_finished":
            for command in event.get("next") or ():
                self._err.write(f"next: {clean(command)}\n")

    def _advise(self, line: str, hint: str | None) -> None:
        self._err.write(line + "\n" + (f"hint: {clean(hint)}\n" if hint else ""))

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        self._out.flush()
        self._err.flush()


# -------------------------------------------------------------------------------------------------- errors and tables


def print_error(error: DlcliError, *, stream: TextIO | None = None) -> None:
    """What went wrong, then what would be right; every mistake of a command at once."""
    stream = stream or sys.stderr
    Output(stream).write(render_error(error, terminal=is_terminal(stream), width=width_of(stream)))


def render_error(error: DlcliError, *, terminal: bool = False, width: int = 80) -> str:
    """error: message, and hint: remedy; on a terminal the first word is a red cross, unless NO_COLOR is set."""
    colour = terminal and not os.environ.get("NO_COLOR")
    mark = "\x1b[31m✗\x1b[0m " if colour else "✗ " if terminal else "error: "
    hint = f"hint: {clean(error.hint)}\n" if error.hint else ""
    if not isinstance(error, ConfigError) or not error.problems:
        return f"{mark}{clean(error.message)}\n{hint}"
    num = len(error.problems)
    what = f"{num} problem{'s' if num > 1 else ''} in the command, nothing was {error.undone}"
    return f"{mark}{what}\n\n{render_problems(error, width=width if terminal else None)}\n{hint}"


def render_problems(error: ConfigError, *, width: int | None = None) -> str:
    """The numbered list of mistakes: the word, what is wrong with it, and a better word; wrapped at `width`."""
    words = [clean(problem.where) for problem in error.problems]
    margin = min(max(map(len, words), default=0), 32)
    text = ""
    for number, (word, problem) in enumerate(zip(words, error.problems, strict=True), 1):
        message = clean(problem.message)
        if problem.better:
            message += f"{'' if message.endswith(('.', '?', '!')) else '.'} Did you mean {clean(problem.better)} ?"
        first, hang = f"{number:>3}  {word:<{margin}}  ", " " * (margin + 7)
        if width is not None and width > len(first) + 20:
            lines = textwrap.wrap(message, width - len(first), break_on_hyphens=False, break_long_words=False)
            message = f"\n{hang}".join(lines)
        text += f"{first}{message}".rstrip() + "\n"
    return text


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    json_rows: Sequence[Mapping[str, Any]] | None = None,
    stream: TextIO | None = None,
) -> None:
    """A table for people on a terminal; aligned lines under one header line elsewhere; with `json_rows`, those
    instead, one object per line.

    Cells are shown as they come (None as –); a column whose cells are all numbers is set to the right.
    """
    stream = stream or sys.stdout
    out = Output(stream)
    if json_rows is not None:
        out.write("".join(json.dumps(_without_nan(dict(row)), default=str) + "\n" for row in json_rows))
        return
    terminal = is_terminal(stream)
    empty = "–" if terminal else "-"
    cells = [[empty if cell is None or cell == "" else clean(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i], empty) for row in cells) for i in range(len(columns))]
    if terminal:
        from dlcli.terminal import print_rich_table

        print_rich_table(stream, clean(title), columns, cells, right)
        return
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        aligned = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True))
        out.write("  ".join(aligned).rstrip() + "\n")


# --------------------------------------------------------------------------------------------------------- the streams


class Output:
    """A text stream that never raises: it spells what the encoding lacks in ASCII and falls silent once broken.

    Also a file for Rich to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.broken = False
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not self.broken:
            self._try(lambda: self._stream.write(encodable(text, self.encoding)))
            self.flush()
        return len(text)

    def flush(self) -> None:
        if not self.broken:
            self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self.broken = True
            self._discard_the_rest()

    def _discard_the_rest(self) -> None:
        """Python flushes its streams at exit and would fail there with code 120: what is buffered goes nowhere."""
        # not a file of the operating system, or closed: then there is nothing to discard
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def is_terminal(stream: TextIO) -> bool:
    """Whether escape sequences would be understood there."""
    try:
        return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def size_of(stream: TextIO | Output) -> tuple[int, int]:
    """(columns, rows) of the terminal behind `stream`, or (80, 24) where it does not say."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        columns = rows = 0
    guess = shutil.get_terminal_size()
    return columns or guess.columns, rows or guess.lines


def width_of(stream: TextIO) -> int:
    return size_of(stream)[0]


def encodable(text: str, encoding: str) -> str:
    """`text` as it is if `encoding` can hold it, otherwise with its symbols replaced by ASCII ones."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return text.encode("ascii", "backslashreplace").decode()
    return text


def clean(text: object) -> str:
    """`text` on one line and without control characters, whole unless it is very long."""
    return printable(text, limit=MESSAGE_LIMIT)


# -------------------------------------------------------------------------------------------------------- plain lines


def _start_line(event: dict[str, Any]) -> str:
    config = event.get("config") or {}
    model = option_of("model", config, event.get("choices"))
    facts = {"run": event.get("run"), "experiment": event.get("experiment"), "model": model}
    return pairs(
        "start", facts | {"seed": event.get("seed"), "changed": " ".join(event.get("overrides") or ()) or None}
    )


def _resumed_line(event: dict[str, Any]) -> str:
    return pairs("resumed", {key: event.get(key) for key in ("run", "step", "epoch")})


def _ready_line(event: dict[str, Any]) -> str:
    keys = ("device", "precision", "threads", "parameters", "trainable", "train", "val", "test", "source", "steps")
    facts: dict[str, Any] = {}
    for key in (*keys, "epochs"):
        facts[key] = event.get(f"{key}_examples", event.get(key))
        if key == "trainable":
            later = event.get("trainable_later") or ()
            facts |= {f"trainable_from_epoch_{more['epoch']}": more["trainable"] for more in later}
    return pairs("ready", facts | {"chosen": event.get("runtime_reason") or None})


def _unfrozen_line(event: dict[str, Any]) -> str:
    facts = {key: event.get(key) for key in ("epoch", "step", "trainable")}
    return pairs("unfrozen", {"groups": ",".join(event.get("groups") or ())} | facts)


def _epoch_line(event: dict[str, Any]) -> str:
    facts: dict[str, Any] = {"epoch": event.get("epoch"), "step": event.get("step")}
    facts |= _named(event.get("metrics"))
    if event.get("lr") is not None:
        facts["lr"] = f"{event['lr']:.1e}"
    if event.get("examples_per_s") is not None:
        facts["examples_per_s"] = f"{event['examples_per_s']:.0f}"
    return pairs("", facts | {"seconds": event.get("seconds"), "best": "yes" if event.get("best") else None})


def _evaluated_line(event: dict[str, Any]) -> str:
    return pairs("evaluated", {"split": event.get("split")} | _named(event.get("metrics"), event.get("split")))


def _done_line(event: dict[str, Any]) -> str:
    facts = {"status": event.get("status"), "reason": event.get("reason"), "epoch": event.get("epoch")}
    facts |= {"step": event.get("step"), "best_epoch": event.get("best_epoch")} | _named(event.get("metrics"))
    facts |= {key: event.get(key) for key in ("seconds", "peak_memory_mb")}
    if shares := time_shares(event):
        facts["time"] = ", ".join(shares)
    return pairs("done", facts | {key: event.get(key) for key in ("run", "checkpoint")})


def time_shares(event: Mapping[str, Any]) -> list[str]:
    """Where a run's time went, like `device 81 %`, in the order that things happen; empty where nobody measured."""
    seconds = {name: s for name, s in (event.get("time") or {}).items() if isinstance(s, int | float)}
    total = sum(seconds.values())
    return [f"{name} {100 * s / total:.0f} %" for name, s in seconds.items()] if total > 0 else []


def pairs(word: str, facts: Mapping[str, Any]) -> str:
    """`word key=value key=value`, without the facts that are None; values with blanks stand in double quotes."""
    shown = (f"{clean(key)}={_value(value)}" for key, value in facts.items() if value is not None)
    return " ".join((word, *shown)) if word else " ".join(shown)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}".rstrip("0").rstrip(".")
    text = clean(value)
    return text if text and not set(text) & set(' "') else '"' + text.replace('"', '\\"') + '"'


def _named(metrics: Mapping[str, Any] | None, split: str | None = None) -> dict[str, Any]:
    """{"val/accuracy": x} as {"val_accuracy": x}; a name without a split gets `split` in front."""
    named = {key if "/" in key or not split else f"{split}/{key}": value for key, value in (metrics or {}).items()}
    return {key.replace("/", "_"): value for key, value in named.items()}


def place(path: object) -> str:
    """A path as a person at this prompt would write it: relative where it lies below the working directory."""
    try:
        return str(Path(str(path)).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def option_of(group: str, config: Mapping[str, Any], choices: object) -> str | None:
    """What was chosen of a group: as recorded in `choices`; of a run that records none, as far as its config says."""
    if isinstance(choices, Mapping) and choices.get(group):
        return str(choices[group])
    node = config.get(group)
    return (node.get("name") or choice(node)) if isinstance(node, Mapping) else None


def choice(node: object) -> str | None:
    """The short name of what a config node builds: dlcli.models.lenet5.LeNet5 is lenet5, torch.optim.AdamW adamw."""
    if not isinstance(node, Mapping):
        return None
    if not isinstance(node.get("_target_"), str):
        return next((name for part in node.values() if (name := choice(part))), None)
    words = node["_target_"].split(".")
    named_by_file = words[:2] in (["dlcli", "models"], ["dlcli", "tasks"]) and len(words) > 2
    return words[2] if named_by_file else words[-1].lower()


def _without_nan(value: Any) -> Any:
    """The same, with null where a number is NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(cell: str, empty: str) -> bool:
    try:
        float(cell.rstrip("%").replace(",", ""))
    except ValueError:
        return cell == empty
    return True
