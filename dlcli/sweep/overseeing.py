"""The process of `dlcli sweep`: it starts the workers, tells what becomes of the trials, and sums up at the end.

It decides nothing: killed, it takes its workers with it, and `dlcli sweep resume` goes on where they were.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcli.disk import write_atomically
from dlcli.display import Display
from dlcli.errors import DivergedError, DlcliError
from dlcli.launch import Forwarding
from dlcli.sweep.definition import Definition
from dlcli.sweep.drawing import draw_once
from dlcli.sweep.events import summary, trial_event
from dlcli.sweep.reading import Reader
from dlcli.sweep.record import Record
from dlcli.sweep.slots import Slots

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
    known: dict[int, Record] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def execute(self, *, resumed: bool = False) -> int:
        """Run to the end; the exit code. Raises SweepPaused, or EnvironmentFault where no worker could go on."""
        self.known = {record.number: record for record in self.reader.records()}
        self.display.event(self._started(resumed))
        with Forwarding() as signals:
            self.workers.start()
            try:
                self._watch(signals)
            finally:
                self._end_workers()
        self._tell_news()
        if signals.received:
            self.display.event({"event": "sweep_interrupted", **self._where(), "next": [self._resume()]})
            return 128 + signals.received
        if not self.is_finished():
            raise self._why_not_finished()
        return self._sum_up()

    def _sum_up(self) -> int:
        records = self.reader.records()
        event = summary(self.folder, self.definition, records, self._seconds())
        write_atomically(self.folder / SUMMARY, (json.dumps(event, indent=1) + "\n").encode())
        self.display.event(event | draw_once(self.folder, self.definition, records))
        return 0 if event["best"] else DivergedError.code

    def _watch(self, signals: Forwarding) -> None:
        deadline: float | None = None
        while True:
            news = self._tell_news()
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

    def _tell_news(self) -> bool:
        """Show what has changed; whether anything has."""
        has_news = False
        records = self.reader.records()
        for record in records:
            before = self.known.get(record.number)
            if before == record:
                continue
            has_news = True
            if record.is_finished:
                self.display.event({"event": "trial_finished", **self.shown(record)})
            elif record.state == "running" and (before is None or before.state == "waiting"):
                self.display.event({"event": "trial_started", **self.shown(record)})
            self.known[record.number] = record
        self.display.progress(sum(record.is_finished for record in records), lambda: 0.0)
        return has_news

    def shown(self, record: Record) -> dict[str, Any]:
        return trial_event(self.folder, self.definition, record)

    def is_finished(self) -> bool:
        records = self.reader.records()
        return len(records) >= self.definition.trials and all(record.is_finished for record in records)

    def _why_not_finished(self) -> DlcliError:
        if fault := self.workers.fault():
            return fault
        if why := self.reader.paused():
            return SweepPaused(f"the sweep is paused: {why}", hint=f"Mend it, then: {self._resume()}")
        return SweepPaused("the workers ended before the sweep did", hint=self._resume())

    def _started(self, resumed: bool) -> dict[str, Any]:
        definition = self.definition
        return {
            "event": "sweep_resumed" if resumed else "sweep_started",
            **self._where(),
            "experiment": definition.experiment,
            "trials": definition.trials,
            "finished": sum(record.is_finished for record in self.known.values()),
            "sampler": definition.sampler,
            "pruner": definition.pruner,
            "objectives": [{"name": o.name, "goal": o.goal} for o in definition.objectives],
            "space": [axis.text or axis.key for axis in definition.axes],
            "axes": [axis.key for axis in definition.space.axes],
            "words": list(definition.words),
            "seed": definition.seed,
            **self.workers.facts(),
        }

    def _where(self) -> dict[str, Any]:
        return {"sweep": str(self.folder), "name": self.definition.name}

    def _resume(self) -> str:
        return f"dlcli sweep resume {self.definition.name}"

    def _seconds(self) -> float:
        return time.monotonic() - self.began
