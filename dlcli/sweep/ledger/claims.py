"""The ledger of a sweep: an Optuna storage that workers ask for trials, of which none is lost, repeated or stuck.

    ledger = open_ledger(folder, definition)
    claim = ledger.claim(worker)        a trial to train: one that was handed back or whose worker died, or a new one
    ledger.finish(claim, record)        or ledger.release(claim), for another to go on with

A trial's own folder says what became of it before the ledger does: what the ledger lacks is put back from there, up to
the whole of it. Claims and ends are made in turn, by an flock beside the embedded file or a lock of the database.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.find import checkpoint_steps
from dlcli.runs.folder import RunFolder
from dlcli.sweep.ledger.heartbeat import Watch, is_here, oom_kills, read_beat, write_beat
from dlcli.sweep.ledger.journal import locked
from dlcli.sweep.ledger.optuna_trials import distribution, state_of, text_of, values_of
from dlcli.sweep.ledger.samplers import make_pruner, make_sampler
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.trial_record import Record, read_record, trial_folder

LEDGER, CLAIMS, CONTROL = "ledger.jsonl", ".claim.lock", "control.json"
MOST_DEATHS = 8  # of workers over one trial, without a checkpoint in between: it is the trial
MOST_OOM_DEATHS = 2  # the same where the system killed somebody for want of memory each time
SAME_BUGS = 3  # in a row pause the sweep
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class Claim:
    """A trial that this worker has, and no other. trial: for the pruner; is_begun: by a worker before."""

    record: Record
    trial: optuna.Trial
    is_begun: bool


class Wait:
    """All trials are taken, but not finished: one of them may come back."""


WAIT = Wait()


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


class Ledger:
    """folder: of the sweep; storage: Optuna's; exclusively: makes contexts that one worker is in at a time."""

    def __init__(self, folder: Path, definition: Definition, storage: optuna.storages.BaseStorage):
        self.folder, self.definition, self.storage = folder, definition, storage
        directions = [_DIRECTIONS[objective.goal] for objective in definition.objectives]
        self.study = optuna.create_study(
            study_name=definition.name, storage=storage, directions=directions, load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(), pruner=make_pruner(definition),
        )  # fmt: skip
        self.study_id = storage.get_study_id_from_name(definition.name)
        self.watch = Watch(self.read_beat, definition.grace_s)

    # -- what differs between an embedded and a shared ledger

    def exclusively(self) -> AbstractContextManager[None]:
        return locked(self.folder / CLAIMS)

    def close(self) -> None:
        """Nothing is open between two calls."""

    def beat(self, worker_id: str, number: int) -> None:
        write_beat(self.folder, worker_id, number)

    def read_beat(self, worker_id: str) -> int | None:
        return read_beat(self.folder, worker_id)

    # -- claiming

    def claim(self, worker: dict[str, Any]) -> Claim | Wait | None:
        """A trial for this worker; WAIT while others have the last ones; None when all are finished or it is paused."""
        with self.exclusively():
            self.reap()
            trials = self.trials()
            if self.paused():
                return None
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            if not waiting and len(trials) >= self.definition.trials:
                return WAIT if any(trial.state == TrialState.RUNNING for trial in trials) else None
            number = waiting[0].number if waiting else len(trials)
            return self._take(number, worker)

    def _take(self, number: int, worker: dict[str, Any]) -> Claim:
        with _quiet():
            self.study.sampler = make_sampler(self.definition, number)
            trial = self.study.ask()
            assert trial.number == number
            point = self._sample(trial)
        before = read_record(self.folder, number)
        started = before.started if before and before.started else now()
        record = Record(number, point, worker=worker, started=started, reports=before.reports if before else {})
        same = self._same(record)
        if same is not None:
            record = record.be(
                state=same.state, values=same.values, metrics=same.metrics, reason=same.reason, finished=now(),
                seconds=0.0, reuse_of=same.run_number,
            )  # fmt: skip
        record.write(self.folder)
        self._note(record)
        return Claim(record, trial, is_begun=RunFolder(trial_folder(self.folder, number)).run_yaml.is_file())

    def _sample(self, trial: optuna.Trial) -> dict[str, str]:
        point: dict[str, str] = {}
        for axis in self.definition.space.axes:
            if axis.applies(point):
                point[axis.key] = text_of(axis, trial._suggest(axis.key, distribution(axis)))
        return point

    def _same(self, record: Record) -> Record | None:
        """A finished trial that was the same."""
        finished = (self.record_of(t) for t in self.trials() if t.state == TrialState.COMPLETE)
        return next((r for r in finished if r.point == record.point and r.number != record.number), None)

    # -- the end of a trial

    def finish(self, claim: Claim, record: Record) -> bool:
        """Put the result down, in the folder first. False where another worker has taken the trial over meanwhile."""
        with self.exclusively():
            held = self._frozen(record.number)
            if held.state != TrialState.RUNNING or self.record_of(held).worker.get("id") != record.worker.get("id"):
                return False
            record = record.be(sampler=dict(held.system_attrs))
            record.write(self.folder)
            self._note(record)
            self._tell(record)
            self._pause_if_hopeless()
            return True

    def release(self, claim: Claim) -> None:
        """Hand a trial back: another goes on where it was saved."""
        with self.exclusively():
            held = self._frozen(claim.record.number)
            if held.state == TrialState.RUNNING and self.record_of(held).worker == claim.record.worker:
                self._hand_back(claim.record)

    def _hand_back(self, record: Record) -> None:
        record = record.be(state="waiting")
        record.write(self.folder)
        self._note(record)
        self.storage.set_trial_state_values(self.trial_id(record.number), TrialState.WAITING)

    def _tell(self, record: Record) -> None:
        with _quiet():
            self.study.tell(record.number, values_of(record, self.definition.objectives), state=state_of(record))

    # -- the dead

    def reap(self) -> list[int]:
        """Hand back the trials of dead workers, and put down what their folders say is finished; their numbers."""
        found = []
        for held in self.trials():
            if held.state.is_finished():
                continue
            truth = read_record(self.folder, held.number)
            if truth is not None and truth.is_finished:  # a kill, or a torn record, came between folder and ledger
                self._catch_up(held, truth)
            elif held.state == TrialState.RUNNING:
                record = self.record_of(held)
                if truth is not None and record.worker.get("id") in (None, truth.worker.get("id")):
                    record = truth  # of the same claim, and written first
                if record.state == "waiting":
                    self._hand_back(record)
                elif not record.worker or not self.watch.is_alive(record.worker):  # without one: killed at the claim
                    self._bury(held, record)
                    found.append(held.number)
        return found

    def _catch_up(self, held: FrozenTrial, truth: Record) -> None:
        if held.state == TrialState.WAITING:
            self.storage.set_trial_state_values(self.trial_id(held.number), TrialState.RUNNING)
        self._note(truth)
        self._tell(truth)

    def _bury(self, held: FrozenTrial, record: Record) -> None:
        """The trial waits for another, unless it is the trial that kills."""
        steps = checkpoint_steps(RunFolder(trial_folder(self.folder, held.number)))
        step = int(steps[-1].name[5:]) if steps else 0
        before = held.user_attrs.get("deaths", {"count": 0, "step": 0, "oom": 0})
        starved = is_here(record.worker) and oom_kills() > int(record.worker.get("oom_kills", 0))
        has_moved = step > before["step"]
        deaths = {
            "count": 1 if has_moved else before["count"] + 1,
            "oom": int(starved) if has_moved else before["oom"] + int(starved),
            "step": step,
        }
        self.storage.set_trial_user_attr(self.trial_id(held.number), "deaths", deaths)
        if deaths["oom"] >= MOST_OOM_DEATHS or deaths["count"] >= MOST_DEATHS:
            state = "out of memory" if deaths["oom"] >= MOST_OOM_DEATHS else "killed"
            message = f"its worker was killed {deaths['count']} times over it, the last after step {step}"
            record = record.be(state=state, reason=message, signature=state, finished=now())
            record.write(self.folder)
            self._note(record)
            self._tell(record)
        else:
            self._hand_back(record)

    # -- pausing

    def paused(self) -> str | None:
        """Why no more trials are given out."""
        return self.study.user_attrs.get("paused")

    def pause(self, why: str | None) -> None:
        """Give no more trials out, or, with None, go on: what has failed before counts no more then."""
        self.study.set_user_attr("paused", why)
        if why is None:
            self.study.set_user_attr("forgiven", sum(record.is_failure for record in self.records()))
        control = {key: self.study.user_attrs.get(key) for key in ("paused", "forgiven")}
        write_atomically(self.folder / CONTROL, json.dumps(control).encode())

    def recall_pause(self) -> None:
        """The trial as its folder has it, for a ledger that was rebuilt."""
        for key, value in (read_json(self.folder / CONTROL) or {}).items():
            self.study.set_user_attr(key, value)

    def _pause_if_hopeless(self) -> None:
        ended = [record for record in self.records() if record.is_finished]
        ended.sort(key=lambda record: datetime.fromisoformat(record.finished or now()))
        new = [record for record in ended if record.is_failure][self.study.user_attrs.get("forgiven") or 0 :]
        last, most = ended[-SAME_BUGS:], self.definition.max_failures
        is_same = len(last) == SAME_BUGS and len({r.signature for r in last}) == 1 and last[0].state in ("bug", "data")
        if is_same and len(new) >= SAME_BUGS:
            self.pause(f"the same failure {SAME_BUGS} times in a row: {last[-1].reason}")
        elif most is not None and len(new) > most:
            self.pause(f"{len(new)} trials have failed, --max-failures is {most}; the last: {new[-1].reason}")

    # -- reading

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def record_of(self, held: FrozenTrial) -> Record:
        """As the ledger has it; of a trial that was killed while it was given out, what there is."""
        record = Record.from_dict(held.user_attrs.get("record", {"number": held.number, "point": {}}))
        assert record is not None
        return record.be(state="waiting") if held.state == TrialState.WAITING else record

    def records(self) -> list[Record]:
        return [self.record_of(held) for held in self.trials()]

    def trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self.trial_id(number))

    def _note(self, record: Record) -> None:
        self.storage.set_trial_user_attr(self.trial_id(record.number), "record", record.as_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls some of its options experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
