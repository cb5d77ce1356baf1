"""Tells a display what becomes of a sweep's trials, as it comes to stand in their folders or in the shared ledger."""

from __future__ import annotations

import time
from typing import Any

from dlcli.runs.events import Display
from dlcli.sweep.status.events import trial_event
from dlcli.sweep.status.reading import Reader
from dlcli.sweep.study.trial_record import Record

WATCH_S = 0.5


class Teller:
    """Trials that are there at the start are not reported again."""

    def __init__(self, reader: Reader, display: Display):
        self.reader, self.display = reader, display
        self.folder, self.definition = reader.folder, reader.definition
        self.known: dict[int, Record] = {record.number: record for record in reader.records()}

    def begin(self, event: str, **facts: Any) -> None:
        """The first event: sweep_started, sweep_resumed or sweep_watched. facts: of the workers."""
        definition = self.definition
        message = {
            "event": event,
            **self.where(),
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
            **facts,
        }
        self.display.event(message)

    def where(self) -> dict[str, Any]:
        return {"sweep": str(self.folder), "name": self.definition.name}

    def tell(self) -> bool:
        """Show what has changed; whether anything has."""
        has_news = False
        records = self.reader.records()
        for record in records:
            before = self.known.get(record.number)
            if before == record:
                continue
            has_news = True
            if record.is_finished:
                self.display.event({"event": "trial_finished", **trial_event(self.folder, self.definition, record)})
            elif record.state == "running" and (before is None or before.state == "waiting"):
                self.display.event({"event": "trial_started", **trial_event(self.folder, self.definition, record)})
            elif record.state == "waiting" and before is not None:  # handed back, or its worker is dead
                self.display.event({"event": "trial_waiting", **trial_event(self.folder, self.definition, record)})
            self.known[record.number] = record
        self.display.progress(sum(record.is_finished for record in records), lambda: 0.0)
        return has_news

    def is_finished(self) -> bool:
        records = self.reader.records()
        return len(records) >= self.definition.trials and all(record.is_finished for record in records)


def watch(reader: Reader, display: Display, workers: int) -> None:
    """Look on until all is finished; a Ctrl-C ends the looking, not the sweep. workers: at work now, to reckon with."""
    teller = Teller(reader, display)
    teller.begin("sweep_watched", workers=max(1, workers), devices=[], threads=None)
    try:
        while not teller.is_finished():
            teller.tell()
            time.sleep(WATCH_S)
        teller.tell()
    finally:
        display.close()
