"""Ctrl-C, SIGTERM and a lost terminal: the handler sets a flag and nothing else; the second signal leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Raised at a place where work can stop, for instance between batches of an evaluation, never by a handler."""


class Signals:
    """Within the block a signal is noted in `received`; raise_if_received() turns it into Interrupted.

    A block inside another block of the same object joins it: in a process with more to do, the inner one is one run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> Signals:
        self._depth += 1
        if self._depth > 1:
            return self
        for number in WATCHED:
            if signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):  # nohup, background jobs: an ignored signal stays ignored
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            leave(number)
        self.received = number

    def raise_if_received(self) -> None:
        if self.received is not None:
            raise Interrupted

    @property
    def exit_code(self) -> int:
        return 128 + (self.received or 0)


def leave(number: int) -> None:
    """End the process now, with the cursor shown again: a file that is being saved stays a temporary file."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stream.isatty():
            os.write(stream.fileno(), b"\x1b[?25h\n")
            break
    os._exit(128 + number)
