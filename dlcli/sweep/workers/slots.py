"""Workers by number, wherever they run: who is at work, who is started again, and who has fallen too often."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from dlcli.errors import EnvironmentFault, printable
from dlcli.runtime.launch import signal_name

MORE = 75  # a worker's exit code: it has done its trial, and another is to go on in its place (EX_TEMPFAIL)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)
LOST = -1000  # instead of an exit code: it is gone, and nobody saw how
MOST_FALLS = 5  # of one worker in a row, without news of any trial: it cannot even begin


class Slots(ABC):
    """The workers, as the overseer needs them. count: how many at once; notes: messages that the overseer prints."""

    is_stopped_from_outside = False  # whether a worker may be sent away (a time limit) while the sweep goes on

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.at_work: set[int] = set()
        self.codes: dict[int, int] = {}
        self.falls: dict[int, int] = dict.fromkeys(range(count), 0)
        self.notes: list[str] = []

    @abstractmethod
    def begin(self, slot: int) -> None:
        """Start a worker."""

    @abstractmethod
    def poll(self, slot: int) -> int | None:
        """How it ended: its exit code, minus a signal, or LOST; None while it is at work or waits to be."""

    @abstractmethod
    def stop(self, number: int) -> None:
        """Send a signal to all: SIGTERM lets them save; SIGKILL ends them."""

    @abstractmethod
    def log(self, slot: int) -> Path:
        """What it has said."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """For the header: what each worker has."""

    def start(self) -> None:
        for slot in range(self.count):
            self._begin(slot)

    def _begin(self, slot: int) -> None:
        self.begin(slot)
        self.at_work.add(slot)

    def watch(self, *, has_news: bool, stopping: bool) -> bool:
        """Start again what has died; whether any is at work. has_news: of a trial, since the last call."""
        if has_news:
            self.falls = dict.fromkeys(self.falls, 0)
        for slot in sorted(self.at_work):
            code = self.poll(slot)
            if code is None:
                continue
            self.at_work.discard(slot)
            self.codes[slot] = code
            if stopping or code == 0 or (code in STOPPED and not self.is_stopped_from_outside):
                continue
            if code == MORE:
                self._begin(slot)
            elif code < 0 or code not in range(2, 8):  # killed, or a fault of its own: its trial is taken up again
                self._fall(slot, code)
            else:
                self.notes.append(f"worker {slot} {how(code)}: {self._last_words(slot)}")
        return bool(self.at_work)

    def _fall(self, slot: int, code: int) -> None:
        self.falls[slot] += 1
        goes_on = self.falls[slot] < MOST_FALLS
        rest = "another takes its trial up" if goes_on else f"{MOST_FALLS} times in a row; it is not started again"
        self.notes.append(f"worker {slot} {how(code)}; {rest}")
        if goes_on:
            self._begin(slot)

    def fault(self) -> EnvironmentFault | None:
        """What a worker that could not go on has said, once none is left."""
        for slot, code in self.codes.items():
            if code not in (*STOPPED, 0, MORE):
                said = f"worker {slot} {how(code)}: {self._last_words(slot)}"
                return EnvironmentFault(said, hint=f"See {printable(self.log(slot))}")
        return None

    def _last_words(self, slot: int) -> str:
        try:
            lines = self.log(slot).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it has no log"
        errors = [line for line in lines if line.startswith("error:")] or [line for line in lines if line.strip()]
        return printable(errors[-1].removeprefix("error: ")) if errors else "it said nothing"


def how(code: int) -> str:
    if code == LOST:
        return "is gone"
    return f"was ended by {signal_name(-code)}" if code < 0 else f"ended with {code}"
