"""Prints a lesson: Rich tables and curves on a terminal, plain text in a pipe, JSON lines for programs."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

from dlcli import PACKAGE
from dlcli.errors import ConfigError, EnvironmentFault, nearest, printable
from dlcli.lessons import TOPICS
from dlcli.lessons.lesson import Lesson
from dlcli.lessons.scratch.data import SETS
from dlcli.reporting.output import Output, clean, encodable, is_terminal, place, width_of
from dlcli.reporting.tables import print_table

WIDEST = 110  # columns of text: longer lines are hard to read
FOLDER = "learn"  # in the folder of the runs, which git ignores


def show(lesson: Lesson, *, picture: str | None, outputs: str | None, as_json: bool) -> None:
    """Draw the picture and print the lesson; last comes the command that does it for real."""
    path = draw(lesson, picture, outputs)
    if as_json:
        for event in events(lesson, path):
            print(json.dumps(event))
        return
    out = Output(sys.stdout)
    for line in wrapped(lesson.title, ""):
        out.write(line + "\n")
    for table in lesson.tables:
        out.write("\n")
        print_table("", table.columns(), table.cells())
    out.write("\n")
    if is_terminal(sys.stdout):
        from dlcli.lessons.charts import side_by_side

        ascii_only = encodable("⣿", out.encoding) != "⣿"
        for line in side_by_side(lesson.charts, width=width_of(sys.stdout), ascii_only=ascii_only):
            out.write(line + "\n")
    for note in lesson.notes:
        for line in wrapped(note, "  ", "    "):
            out.write(line + "\n")
    out.write("\n" if lesson.notes else "")
    out.write(f"code      {place(source_of(lesson.topic))}\n")
    out.write(f"picture   {place(path)}\n" if path else "")
    for line in wrapped(lesson.does, "for real  ", " " * 10):
        out.write(line + "\n")
    out.write(f"next      {lesson.command}\n")


def wrapped(text: str, first: str, rest: str = "") -> list[str]:
    """The text broken at the terminal's width, with lines that begin with `first` and `rest`; one line in a pipe."""
    if not is_terminal(sys.stdout):
        return [first + clean(text)]
    width = min(width_of(sys.stdout), WIDEST)
    return textwrap.wrap(
        clean(text), width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def events(lesson: Lesson, picture: Path | None) -> list[dict[str, Any]]:
    """One object per row, then one for the whole."""
    from dlcli.runs.events import finite

    rows = [
        {"event": "learned", "topic": lesson.topic, "table": table.name, **row}
        for table in lesson.tables
        for row in table.rows
    ]
    end = {
        "event": "lesson_finished",
        "topic": lesson.topic,
        "notes": list(lesson.notes),
        "code": str(source_of(lesson.topic)),
        "picture": str(picture) if picture else None,
        "next": [lesson.command],
    }
    return [finite(row) for row in [*rows, end]]


def source_of(topic: str) -> Path:
    return PACKAGE / "lessons" / "scratch" / f"{topic}.py"


def draw(lesson: Lesson, picture: str | None, outputs: str | None) -> Path | None:
    """The path of the written picture. A path that the user gave must work; if the usual one fails, a line says so."""
    from dlcli.reporting.pictures import blank_figure, save_figure
    from dlcli.runs.find import outputs_folder

    path = Path(picture).expanduser() if picture else outputs_folder(outputs) / FOLDER / f"{lesson.topic}.png"
    figure = blank_figure(*lesson.size)
    lesson.draw(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    except OSError as error:
        reason = f"the picture could not be written to {clean(path)}: {error.strerror or error}"
        if picture:
            raise EnvironmentFault(reason, hint="Give --picture PATH.png in a folder that you may write to") from None
        print(f"warning: {reason}", file=sys.stderr)
        return None
    return path


def check(picture: str | None, *, data: str | None = None, **numbers: float | None) -> None:
    """Reports mistakes that Typer lets through, before anything is computed."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise ConfigError(f"--{name} {number}: must be a number", hint=f"--{name} 0.1")
    if data is not None and data not in SETS:
        better = nearest(data, SETS)
        raise ConfigError(
            f"there is no data set {printable(data)}",
            hint=f"{f'Did you mean {better}? ' if better else ''}({', '.join(SETS)})",
        )
    if picture is not None and not picture.lower().endswith(".png"):
        stem = Path(picture).with_suffix("") if Path(picture).stem else Path("picture")
        raise ConfigError(f"--picture {clean(picture)}: pictures are PNG files", hint=f"--picture {clean(stem)}.png")


def list_topics(*, as_json: bool) -> None:
    rows = [[topic, what, f"dlcli learn {topic}"] for topic, what in TOPICS.items()]
    objects = [dict(zip(("name", "what", "command"), row, strict=True)) for row in rows] if as_json else None
    print_table("topics", ["name", "what", "command"], rows, json_rows=objects)
