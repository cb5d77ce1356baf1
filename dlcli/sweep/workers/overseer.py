"""The process of `dlcli sweep`: it starts the workers, tells what becomes of the trials, and sums up at the end.

It decides nothing: killed, it takes its workers with it, and `dlcli sweep resume` goes on where they were.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from dlcli.errors import DivergedError, DlcliError
from dlcli.runs.disk import write_atomically
from dlcli.runs.events import Display
from dlcli.runtime.launch import Forwarding
from dlcli.sweep.results.drawing import draw_once
from dlcli.sweep.status.events import summary
from dlcli.sweep.status.reading import Reader
from dlcli.sweep.status.telling import Teller
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.workers.retention import keep_best
from dlcli.sweep.workers.slots import Slots

SUMMARY = "summary.json"
POLL_S = 0.25
ENOUGH_S = 120.0  # for workers to save and go, after which they are killed: what they had is on disk


class SweepPaused(DlcliError):
    """No more trials are given out, since the last ones failed alike."""

    code = 1


@dataclass
class Overseer:
    """One execution of a sweep on this machine."""

    folder: Path
    definition: Definition
    reader: Reader
    display: Display
    workers: Slots
    began: float = field(default_factory=time.monotonic)

    def execute(self, *, resumed: bool = False) -> int:
        """Run to the end; the exit code. Raises SweepPaused, or EnvironmentFault where no worker could go on."""
        self.teller = Teller(self.reader, self.display)
        self.teller.begin("sweep_resumed" if resumed else "sweep_started", **self.workers.facts())
        with Forwarding() as signals:
            self.workers.start()
            try:
                self._watch(signals)
            finally:
                self._end_workers()
        self.teller.tell()
        if signals.received:
            self.display.event({"event": "sweep_interrupted", **self.teller.where(), "next": [self._resume()]})
            return 128 + signals.received
        if not self.teller.is_finished():
            raise self._why_not_finished()
        return self._sum_up()

    def _sum_up(self) -> int:
        records = self.reader.records()
        keep_best(self.folder, records, self.definition)  # a worker may have been killed before it did
        event = summary(self.folder, self.definition, records, self._seconds())
        write_atomically(self.folder / SUMMARY, (json.dumps(event, indent=1) + "\n").encode())
        self.display.event(event | draw_once(self.folder, self.definition, records))
        return 0 if event["best"] else DivergedError.code

    def _watch(self, signals: Forwarding) -> None:
        deadline: float | None = None
        while True:
            news = self.teller.tell()
            for number in signals.take():
                self.workers.stop(number)
                deadline = time.monotonic() + ENOUGH_S
            at_work = self.workers.watch(has_news=news, stopping=signals.received is not None)
            for note in self.workers.notes:
                self.display.event({"event": "note", "message": note})
            self.workers.notes.clear()
            if not at_work or (deadline and (time.monotonic() > deadline or signals.count > 1)):
                return
            time.sleep(POLL_S)

    def _end_workers(self) -> None:
        self.workers.stop(signal.SIGTERM)
        until = time.monotonic() + 5
        while self.workers.watch(has_news=False, stopping=True):
            if time.monotonic() > until:
                self.workers.stop(signal.SIGKILL)
            time.sleep(0.05)

    def _why_not_finished(self) -> DlcliError:
        if fault := self.workers.fault():
            return fault
        if why := self.reader.paused():
            return SweepPaused(f"the sweep is paused: {why}", hint=f"Mend it, then: {self._resume()}")
        return SweepPaused("the workers ended before the sweep did", hint=self._resume())

    def _resume(self) -> str:
        return f"dlcli sweep resume {self.definition.name}"

    def _seconds(self) -> float:
        return time.monotonic() - self.began
