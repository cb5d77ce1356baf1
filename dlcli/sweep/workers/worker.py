"""A worker: a process that asks the ledger for a trial, trains it, and asks again.

    python -m dlcli.sweep.workers.worker SWEEP_FOLDER

It may be started anywhere that sees the ledger. Where the space allows, it trains one trial after another without
importing torch again: each begins as in a process of its own (runtime.py sets all that is global). SIGTERM and Ctrl-C
save the trial and hand it back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dlcli.errors import DlcliError
from dlcli.reporting.errors import print_error
from dlcli.reporting.wandb_tracker import RunQueue
from dlcli.runtime.signals import Signals
from dlcli.sweep.ledger.claims import Claim, Ledger, Wait
from dlcli.sweep.ledger.heartbeat import Beat, this_worker
from dlcli.sweep.ledger.journal import DamagedLedger
from dlcli.sweep.ledger.opening import open_ledger
from dlcli.sweep.study.definition import read_definition
from dlcli.sweep.workers.retention import keep_best
from dlcli.sweep.workers.slots import MORE

POLL_S = 0.3
HELD_S = 5.0  # until a trial is asked for again that another process still has
Answer = TypeVar("Answer")


class Worker:
    """One process of a sweep. ledger: opened again after it was rebuilt; made: what Hydra has composed here."""

    def __init__(self, folder: Path, storage: str | None = None):
        self.folder, self.storage = folder, storage
        self.definition = read_definition(folder)
        self.ledger = open_ledger(folder, self.definition, storage=storage)
        self.identity = this_worker()
        self.made: dict[tuple[str, ...], Any] = {}
        self.signals = Signals()

    def work(self) -> int:
        """Train trials until there are none left; the exit code."""
        queue = RunQueue(self.folder, self.identity["id"])
        with self.signals, Beat(self.identity["id"], lambda *beat: self.ledger.beat(*beat)), queue as tracker:
            while self.signals.received is None:
                claim = self._ask(lambda ledger: ledger.claim(self.identity))
                if claim is None:
                    return 0
                if isinstance(claim, Wait):
                    time.sleep(POLL_S)
                    continue
                self._do(claim, tracker)
                if self.signals.received is None and self.definition.own_process:
                    return MORE
            return self.signals.exit_code

    def _ask(self, question: Callable[[Ledger], Answer]) -> Answer:
        try:
            return question(self.ledger)
        except DamagedLedger:
            self.ledger.close()
            self.ledger = open_ledger(self.folder, self.definition, storage=self.storage)
            return question(self.ledger)

    def _do(self, claim: Claim, tracker: RunQueue) -> None:
        """Train one trial and tell the ledger; after a signal it is handed back, unless it was finished already."""
        record = claim.record
        if not record.is_finished:
            from dlcli.sweep.workers.trial import Held, Interrupted, run_trial

            try:
                record = run_trial(claim, self.definition, self.folder, self.made, tracker, self.signals)
            except BaseException as error:
                self._ask(lambda ledger: ledger.release(claim))
                if isinstance(error, Held):
                    print(f"trial {record.number}: another process has it", flush=True)
                    time.sleep(HELD_S)
                if isinstance(error, Held | Interrupted):
                    return
                raise
        if self._ask(lambda ledger: ledger.finish(claim, record)):
            with self.ledger.exclusively():
                keep_best(self.folder, self.ledger.records(), self.definition)
            print(f"trial {record.number}: {record.state}{f': {record.reason}' if record.reason else ''}", flush=True)


def main(folder: str) -> int:
    try:
        return Worker(Path(folder)).work()
    except DlcliError as error:
        print_error(error, stream=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
