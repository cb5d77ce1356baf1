"""Text on stdout and stderr: what the stream can show, how wide it is, and a broken pipe."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from dlcli.errors import printable

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
    """(columns, rows) of the terminal of `stream`, or (80, 24) if it is unknown."""
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


def place(path: object) -> str:
    """A path as a person at this prompt would write it: relative where it lies below the working directory."""
    try:
        return str(Path(str(path)).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
