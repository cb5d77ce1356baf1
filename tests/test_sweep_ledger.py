"""The ledger: claims are exclusive, the dead are found, and what the file loses is put back from the folders."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from dlcli.errors import EnvironmentFault
from dlcli.sweep.ledger import claims as ledger_module
from dlcli.sweep.ledger.claims import LEDGER, Claim, Ledger, Wait
from dlcli.sweep.ledger.heartbeat import Watch, is_alive_here, is_here, this_worker, write_beat
from dlcli.sweep.ledger.journal import DamagedLedger, Journal
from dlcli.sweep.ledger.opening import open_ledger
from dlcli.sweep.space.space import Axis
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import Record, read_record, read_records, trial_folder

AXES = (
    Axis("model", values=("a", "b")),
    Axis("model.hidden", values=("[1]", "[2]"), only_with=("a",)),
    Axis("optimizer.lr", low=1e-4, high=1e-1, is_log=True),
    Axis("model.hidden_size", low=1, high=64, is_whole=True),
)


def definition_of(**more: Any) -> Definition:
    given = {"trials": 6, "sampler": "tpe", "pruner": "none", "keep": 2} | more
    return Definition("s", "digits", ("digits",), AXES, (Objective("val/loss", "min"),), **given)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path, definition_of())


def claim_one(ledger: Ledger, worker: dict[str, Any] | None = None) -> Claim:
    claim = ledger.claim(worker or this_worker())
    assert isinstance(claim, Claim)
    return claim


def complete(ledger: Ledger, value: float = 1.0) -> Record:
    claim = claim_one(ledger)
    record = claim.record.be(
        state="completed", values=[value], metrics={"val/loss": value}, finished=ledger_module.now()
    )
    assert ledger.finish(claim, record)
    return record


def dead_worker() -> dict[str, Any]:
    """A worker of this machine whose process has ended."""
    code = "import json; from dlcli.sweep.ledger.heartbeat import this_worker; print(json.dumps(this_worker()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def reopened(ledger: Ledger) -> Ledger:
    return open_ledger(ledger.folder, ledger.definition)


def summary_of(ledger: Ledger) -> list[tuple[int, str, Any, Any]]:
    return [(r.number, r.state, r.point, r.values) for r in ledger.records()]


# -------------------------------------------------------------------------------------------------------------- claims


def test_trials_are_numbered_and_end(ledger: Ledger) -> None:
    assert [complete(ledger, float(i)).number for i in range(6)] == list(range(6))
    assert ledger.claim(this_worker()) is None
    assert {trial.state for trial in ledger.trials()} == {TrialState.COMPLETE}


def test_the_last_trials_are_waited_for(ledger: Ledger) -> None:
    for _ in range(6):
        claim_one(ledger)
    assert isinstance(ledger.claim(this_worker()), Wait)


def test_what_is_handed_back_goes_to_the_next_with_the_same_point(ledger: Ledger) -> None:
    first = claim_one(ledger)
    ledger.release(first)
    again = claim_one(ledger)
    assert (again.record.number, again.record.point) == (0, first.record.point)


def test_a_dead_workers_trial_is_taken_up_with_the_same_point(ledger: Ledger) -> None:
    lost = claim_one(ledger, dead_worker())
    found = claim_one(ledger)
    assert (found.record.number, found.record.point) == (0, lost.record.point)
    assert read_record(ledger.folder, 0).worker["pid"] == os.getpid()


def test_a_trial_whose_worker_died_at_the_claim_is_taken_up(ledger: Ledger) -> None:
    ledger.study.ask()  # and nothing behind it
    assert claim_one(ledger).record.number == 0


def test_an_old_record_here_says_nothing_of_a_later_claim_elsewhere(ledger: Ledger) -> None:
    """With a shared ledger each machine has a folder of its own: what stands here of a trial may be old."""
    claim = claim_one(ledger)
    ledger.release(claim)
    old = read_record(ledger.folder, 0)
    assert old is not None and old.state == "waiting"
    later = claim_one(ledger, this_worker())
    old.write(ledger.folder)  # as the first machine's folder has it
    assert ledger.reap() == []
    assert ledger.records()[0].state == "running" and ledger.records()[0].worker == later.record.worker


def test_who_lost_a_trial_cannot_finish_it(ledger: Ledger) -> None:
    lost = claim_one(ledger, dead_worker())
    claim_one(ledger)
    late = lost.record.be(state="completed", values=[0.0])
    assert not ledger.finish(lost, late)
    assert ledger.records()[0].state == "running"


def test_a_worker_elsewhere_is_dead_when_its_heartbeat_stands_still(tmp_path: Path, monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr("dlcli.sweep.ledger.heartbeat.time.monotonic", lambda: now[0])
    foreign = this_worker() | {"machine": "elsewhere", "id": "w1"}
    assert not is_here(foreign)
    ledger = open_ledger(tmp_path, definition_of(grace_s=60.0))
    claim_one(ledger, foreign)
    for beat in range(1, 5):
        write_beat(tmp_path, "w1", beat)
        now[0] += 50
        assert claim_one(ledger).record.number == beat, "it lives: another trial is given"
    now[0] += 59
    assert ledger.reap() == []
    now[0] += 2
    assert ledger.reap() == [0]


def test_the_living_are_told_from_the_dead_by_number_and_birth() -> None:
    assert is_here(this_worker()) and is_alive_here(this_worker())
    assert not is_alive_here(dead_worker())
    assert not is_alive_here(this_worker() | {"born": "1"}), "another process with its number"
    assert Watch(lambda _: None, 60).is_alive(this_worker())


def _claim_all(folder: str, numbers: Any) -> None:
    ledger = open_ledger(Path(folder), definition_of(trials=40))
    worker = this_worker()
    while isinstance(claim := ledger.claim(worker), Claim):
        numbers.put(claim.record.number)
        ledger.finish(claim, claim.record.be(state="completed", values=[float(claim.record.number)]))


def test_two_processes_never_get_the_same_trial(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    numbers: Any = context.Queue()
    workers = [context.Process(target=_claim_all, args=(str(tmp_path), numbers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [numbers.get(timeout=120) for _ in range(40)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(found) == list(range(40))


def test_the_same_suggestions_come_after_an_interruption(tmp_path: Path) -> None:
    """A sampler's state is its seed, the trial's number and the results: a process more or less changes nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = open_ledger(tmp_path / "a", definition_of(trials=16))
    parts = open_ledger(tmp_path / "b", definition_of(trials=16))
    for number in range(16):
        complete(whole, 1 / (number + 1))
        complete(parts, 1 / (number + 1))
        parts = reopened(parts)
    assert summary_of(whole) == summary_of(parts)
    assert len({record.point["optimizer.lr"] for record in whole.records()}) == 16


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi-random", "gp", "cmaes"])
def test_every_sampler_gives_points_of_the_space(sampler: str, tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of(sampler=sampler, trials=12))
    for number in range(12):
        record = complete(ledger, float(number % 5))
        assert record.point["model"] in ("a", "b")
        assert ("model.hidden" in record.point) == (record.point["model"] == "a")
        assert 1e-4 <= float(record.point["optimizer.lr"]) <= 1e-1
        assert 1 <= int(record.point["model.hidden_size"]) <= 64


def test_several_objectives_have_a_sampler(tmp_path: Path) -> None:
    two = (Objective("val/accuracy", "max"), Objective("parameters", "min"))
    ledger = open_ledger(tmp_path, replace(definition_of(sampler="nsga2", trials=12), objectives=two))
    for number in range(12):
        claim = claim_one(ledger)
        ledger.finish(claim, claim.record.be(state="completed", values=[float(number), float(-number)]))
    assert ledger.claim(this_worker()) is None


def test_an_identical_finished_trial_is_reused(tmp_path: Path) -> None:
    choices = (Axis("model", values=("a", "b")),)
    ledger = open_ledger(tmp_path, replace(definition_of(trials=8, sampler="random"), axes=choices))
    trained = 0
    for _ in range(8):
        claim = claim_one(ledger)
        if not claim.record.is_finished:
            trained += 1
            claim.record = claim.record.be(
                state="completed", values=[{"a": 1.0, "b": 2.0}[claim.record.point["model"]]]
            )
        assert ledger.finish(claim, claim.record)
    records = ledger.records()
    assert trained == 2 and all(record.state == "completed" for record in records)
    first = {record.point["model"]: record.number for record in reversed(records)}
    for record in records:
        assert record.values == [{"a": 1.0, "b": 2.0}[record.point["model"]]]
        assert record.run_number == first[record.point["model"]]


# ------------------------------------------------------------------------------------------------------------- failures


def fail(ledger: Ledger, state: str, reason: str, signature: str | None = None) -> None:
    claim = claim_one(ledger)
    ledger.finish(claim, claim.record.be(state=state, reason=reason, signature=signature, finished=ledger_module.now()))


def test_the_same_bug_three_times_in_a_row_pauses(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of(trials=20))
    for signature in ("x", "x", "y", "x", "x"):
        fail(ledger, "bug", "KeyError: 1", signature)
    assert ledger.paused() is None
    fail(ledger, "bug", "KeyError: 1", "x")
    assert "3 times in a row: KeyError: 1" in str(ledger.paused())
    assert ledger.claim(this_worker()) is None
    ledger.pause(None)
    fail(ledger, "bug", "KeyError: 1", "x")
    assert ledger.paused() is None, "a resume gives it three more"
    for _ in range(2):
        fail(ledger, "bug", "KeyError: 1", "x")
    assert ledger.paused()


def test_a_diverged_trial_is_a_bad_result_and_no_failure(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of(trials=20, max_failures=0))
    for _ in range(4):
        fail(ledger, "diverged", "the loss is nan")
    assert ledger.paused() is None
    assert {trial.state for trial in ledger.trials()} == {TrialState.COMPLETE}
    assert {trial.value for trial in ledger.trials()} == {float("inf")}


def test_max_failures_pauses(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of(trials=20, max_failures=1))
    fail(ledger, "out of memory", "1 GB more")
    assert ledger.paused() is None
    fail(ledger, "bug", "KeyError", "k")
    assert "--max-failures is 1" in str(ledger.paused())


def test_a_trial_that_kills_its_workers_is_given_up(ledger: Ledger) -> None:
    dead = dead_worker()
    for _ in range(ledger_module.MOST_DEATHS):
        assert claim_one(ledger, dead).record.number == 0
    assert claim_one(ledger).record.number == 1
    record = ledger.records()[0]
    assert record.state == "killed" and f"{ledger_module.MOST_DEATHS} times" in str(record.reason)


def test_a_trial_that_gets_on_between_deaths_is_not_given_up(ledger: Ledger) -> None:
    dead = dead_worker()
    for step in range(2 * ledger_module.MOST_DEATHS):
        assert claim_one(ledger, dead).record.number == 0
        (trial_folder(ledger.folder, 0) / "checkpoints" / f"step-{step + 1:08}").mkdir(parents=True)


def test_a_trial_that_memory_does_not_suffice_for_is_told_from_others(ledger: Ledger, monkeypatch: Any) -> None:
    kills = [0]
    monkeypatch.setattr(ledger_module, "oom_kills", lambda: kills[0])
    dead = dead_worker() | {"oom_kills": 0}
    claim_one(ledger, dead)
    kills[0] = 1
    claim_one(ledger, dead | {"oom_kills": 1})
    kills[0] = 2
    claim_one(ledger)
    assert ledger.records()[0].state == "out of memory"


# ---------------------------------------------------------------------------------------------------------- the journal


def filled(folder: Path) -> Ledger:
    """Three completed trials, one diverged, one failed, one pruned; then one running and one handed back."""
    ledger = open_ledger(folder, definition_of(trials=12))
    for value in (3.0, 1.0, 2.0):
        complete(ledger, value)
    for state in ("diverged", "bug", "pruned"):
        fail(ledger, state, "why", "x")
    running = claim_one(ledger)
    ledger.release(claim_one(ledger))
    assert running.record.number == 6
    return ledger


def torn(path: Path) -> None:
    """The last record half written: power, or a full disk."""
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(data[: last + (len(data) - last) // 2])


def zeroed(path: Path) -> None:
    """The last block of the file never reached the disk."""
    data = path.read_bytes()
    path.write_bytes(data[:-700] + b"\0" * 700)


def in_the_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b"#" * 40 + b"\n"
    path.write_bytes(b"".join(lines))


def a_line_less(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize(
    "damage", [torn, zeroed, in_the_middle, a_line_less, Path.unlink, lambda p: p.write_bytes(b"")]
)
def test_nothing_is_lost_with_the_ledgers_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    before = summary_of(filled(tmp_path))
    damage(tmp_path / LEDGER)
    ledger = open_ledger(tmp_path, definition_of(trials=12))
    with ledger.exclusively():
        ledger.reap()
    after = summary_of(ledger)
    finished = [row for row in before if row[1] not in ("running", "waiting")]
    assert [row for row in after if row[1] not in ("running", "waiting")] == finished
    assert [(row[0], row[2]) for row in after] == [(row[0], row[2]) for row in before], "numbers and points"
    values = {trial.number: trial.value for trial in ledger.trials() if trial.state == TrialState.COMPLETE}
    assert values == {0: 3.0, 1: 1.0, 2: 2.0, 3: float("inf")}
    rest = []
    while isinstance(claim := ledger.claim(this_worker()), Claim):
        rest.append(claim.record.number)
        ledger.finish(claim, claim.record.be(state="completed", values=[9.0]))
    assert sorted(rest) == sorted({6, 7, 8, 9, 10, 11} & set(rest)), "no finished one is given again"
    assert {7, 8, 9, 10, 11} <= set(rest)


def test_every_torn_length_of_the_last_record_is_survived(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of())
    complete(ledger, 1.0)
    data = (tmp_path / LEDGER).read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(data)):
        (tmp_path / LEDGER).write_bytes(data[:length])
        again = open_ledger(tmp_path, definition_of())
        with again.exclusively():
            again.reap()
        assert [(r.state, r.values) for r in again.records()] == [("completed", [1.0])], length


def test_a_trial_without_its_folder_keeps_its_number(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    trial_folder(tmp_path, 2).joinpath("trial.json").unlink()
    (tmp_path / LEDGER).unlink()
    again = reopened(ledger)
    assert [trial.state.name for trial in again.trials()][:3] == ["COMPLETE", "COMPLETE", "WAITING"]
    assert claim_one(again).record.number == 2


def test_a_damaged_line_is_said_to_be_one(tmp_path: Path) -> None:
    filled(tmp_path)
    in_the_middle(tmp_path / LEDGER)
    with pytest.raises(DamagedLedger, match="is damaged"):
        list(Journal(tmp_path / LEDGER).read_logs(0))


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: Any) -> None:
    journal = Journal(tmp_path / LEDGER)
    journal.append_logs([{"op_code": 1}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        journal.append_logs([{"op_code": 2, "text": "x" * 100}])
    monkeypatch.undo()
    journal.append_logs([{"op_code": 3}])
    assert [log["op_code"] for log in Journal(tmp_path / LEDGER).read_logs(0)] == [1, 3]


def test_a_reader_passes_over_what_is_being_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / LEDGER)
    journal.append_logs([{"n": 1}, {"n": 2}])
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"n": 3')
    assert [log["n"] for log in journal.read_logs(1)] == [2]
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b"}\n")
    assert [log["n"] for log in journal.read_logs(2)] == [3]


def test_records_survive_odd_files(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "0099").mkdir()
    (tmp_path / "0099" / "trial.json").write_text('{"number": 3, "point": {}}')
    (tmp_path / "0001" / "trial.json").write_text("{")
    assert [record.number for record in read_records(tmp_path)] == [0, 2, 3, 4, 5, 6, 7]


# ----------------------------------------------------------------------------------------------- opening and rebuilding


def test_opening_a_healthy_ledger_while_others_claim_sets_nothing_aside(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    numbers: Any = context.Queue()
    worker = context.Process(target=_claim_all, args=(str(tmp_path), numbers))
    worker.start()
    opened = 0
    while worker.is_alive():
        open_ledger(tmp_path, definition_of(trials=40))
        opened += 1
    worker.join()
    assert worker.exitcode == 0 and opened > 5
    assert not list(tmp_path.glob("*.damaged-*"))
    assert [trial.state for trial in open_ledger(tmp_path, definition_of(trials=40)).trials()] == [
        TrialState.COMPLETE
    ] * 40


def test_who_is_at_work_keeps_the_trial_through_a_rebuild(ledger: Ledger) -> None:
    claim = claim_one(ledger)
    (ledger.folder / LEDGER).unlink()
    other = reopened(ledger)
    assert claim_one(other).record.number == 1, "trial 0 is at work"
    with pytest.raises(DamagedLedger, match="rebuilt"):
        ledger.claim(this_worker())
    assert reopened(ledger).finish(claim, claim.record.be(state="completed", values=[1.0]))


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2", "tpe"])
def test_a_sampler_goes_on_after_a_rebuild_as_it_would_have(sampler: str, tmp_path: Path) -> None:
    objectives = (Objective("val/accuracy", "max"), Objective("parameters", "min"))[: 2 if sampler == "nsga2" else 1]
    axes = (Axis("optimizer.lr", low=1e-4, high=1e-1, is_log=True), Axis("regularization.dropout", high=0.5))
    definition = replace(definition_of(sampler=sampler, trials=40), objectives=objectives, axes=axes)
    for name in ("whole", "rebuilt"):
        (tmp_path / name).mkdir()
        ledger = open_ledger(tmp_path / name, definition)
        for number in range(32):
            if name == "rebuilt" and number == 24:
                (tmp_path / name / LEDGER).unlink()
                ledger = open_ledger(tmp_path / name, definition)
            claim = claim_one(ledger)
            score = -abs(float(claim.record.point["regularization.dropout"]) - 0.2)
            values = [score, float(number % 7)][: len(objectives)]
            assert ledger.finish(claim, claim.record.be(state="completed", values=values))
    whole, rebuilt = (open_ledger(tmp_path / name, definition).records() for name in ("whole", "rebuilt"))
    assert [record.point for record in rebuilt[:24]] == [record.point for record in whole[:24]]
    if sampler == "nsga2":  # whose parents stand in the study: of the same generation, drawn anew
        assert all(record.point for record in rebuilt)
    else:
        assert [record.point for record in rebuilt] == [record.point for record in whole]


def test_a_pause_is_remembered_through_a_rebuild(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, definition_of(trials=20))
    for _ in range(3):
        fail(ledger, "bug", "KeyError: 1", "x")
    (tmp_path / LEDGER).unlink()
    assert "3 times in a row" in str(reopened(ledger).paused())


def test_any_flipped_bit_is_survived(tmp_path: Path) -> None:
    before = summary_of(filled(tmp_path))
    data = (tmp_path / LEDGER).read_bytes()
    drawn = random.Random(0)
    for _ in range(60):
        flipped = bytearray(data)
        flipped[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        (tmp_path / LEDGER).write_bytes(flipped)
        ledger = open_ledger(tmp_path, definition_of(trials=12))
        with ledger.exclusively():
            ledger.reap()
        points = {number: point for number, _, point, _ in summary_of(ledger)}
        assert all(points[number] == point for number, _, point, _ in before)


def test_steps_end_where_they_say_and_survive_a_rebuild(tmp_path: Path) -> None:
    from dlcli.sweep.space.axes import read_axes

    for word, values in (
        ("regularization.dropout=range(0,0.9,0.3)", ["0.0", "0.3", "0.6"]),
        ("regularization.dropout=range(0,0.35,0.1)", ["0.0", "0.1", "0.2", "0.3"]),
        ("regularization.dropout=range(0.1,0.7,0.2)", ["0.1", "0.3", "0.5"]),
    ):
        _, (axis,), reading = read_axes([word], [])
        assert not reading.problems and axis.every() == values
        assert [axis.at(share) for share in (0, 0.99999)] == [values[0], values[-1]]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        definition = replace(definition_of(sampler="grid", trials=len(values)), axes=(axis,))
        ledger = open_ledger(folder, definition)
        assert [complete(ledger).point["regularization.dropout"] for _ in values] == values
        (folder / LEDGER).unlink()
        assert [
            record.point["regularization.dropout"] for record in open_ledger(folder, definition).records()
        ] == values
