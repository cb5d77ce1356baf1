"""A worker: a process that asks the ledger for a trial, trains it, and asks again.

    python -m dlcli.sweep.worker SWEEP_FOLDER

It may be started anywhere that sees the ledger. Where the space allows, it trains one trial after another without
importing torch again: each begins as in a process of its own (runtime.py sets all that is global). SIGTERM and Ctrl-C
save the trial and hand it back.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dlcli.display import print_error
from dlcli.errors import DlcliError
from dlcli.signals import Signals
from dlcli.sweep.definition import Definition, read_definition
from dlcli.sweep.keeping import keep_best
from dlcli.sweep.ledger import Claim, Ledger, Wait, open_ledger
from dlcli.sweep.life import Beat, this_worker
from dlcli.sweep.slots import MORE
from dlcli.tracker import RunQueue

POLL_S = 0.3


def work(folder: Path, *, storage: str | None = None) -> int:
    """Train trials until there are none left; the exit code."""
    definition = read_definition(folder)
    ledger = open_ledger(folder, definition, storage=storage)
    worker = this_worker()
    made: dict[tuple[str, ...], Any] = {}
    with Signals() as signals, Beat(worker["id"], ledger.beat), RunQueue(folder, worker["id"]) as tracker:
        while signals.received is None:
            claim = ledger.claim(worker)
            if claim is None:
                return 0
            if isinstance(claim, Wait):
                time.sleep(POLL_S)
                continue
            of_trial = Signals()  # while it is trained, they come there
            _do(claim, ledger, definition, made, tracker, of_trial)
            signals.received = signals.received or of_trial.received
            if signals.received is None and wants_own_process(definition):
                return MORE
        return signals.exit_code


def _do(
    claim: Claim,
    ledger: Ledger,
    definition: Definition,
    made: dict[tuple[str, ...], Any],
    tracker: RunQueue,
    signals: Signals,
) -> None:
    """Train one trial and tell the ledger; after a signal it is handed back, unless it was finished already."""
    record = claim.record
    if not record.is_finished:
        from dlcli.sweep.trial import Interrupted, run_trial

        try:
            record = run_trial(claim, definition, ledger.folder, made, tracker, signals)
        except Interrupted:
            ledger.release(claim)
            return
        except BaseException:
            ledger.release(claim)
            raise
    if ledger.finish(claim, record):
        keep_best(ledger, definition)
        print(f"trial {record.number}: {record.state}{f': {record.reason}' if record.reason else ''}", flush=True)


def wants_own_process(definition: Definition) -> bool:
    """Whether a trial leaves something behind in its process: what was compiled for one would count for the next."""
    words = definition.words
    return "runtime.compile=true" in words or any(axis.key.startswith("runtime.") for axis in definition.axes)


def main(folder: str) -> int:
    try:
        return work(Path(folder))
    except DlcliError as error:
        print_error(error, stream=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
