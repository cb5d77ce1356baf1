"""Errors on stderr: the problem, its value and the remedy."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TextIO

from dlcli.errors import ConfigError, DlcliError
from dlcli.reporting.output import Output, clean, is_terminal, width_of

# -------------------------------------------------------------------------------------------------- errors and tables


def print_error(error: DlcliError, *, stream: TextIO | None = None) -> None:
    """Print what is wrong, then the remedy; all mistakes of a command at once."""
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
