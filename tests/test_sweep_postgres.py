"""A sweep over a ledger that machines share: a real PostgreSQL, killed workers, other machines, a server that stops."""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres import Server, find_binaries
from sweeping import (
    SMALL,
    SPACE,
    begin,
    check_whole,
    finished,
    kill_everything,
    kill_worker,
    sweep,
    trials,
    wait_for,
    wait_with,
    worker_pids,
)

from dlcli.errors import ConfigError, EnvironmentFault
from dlcli.sweep.ledger.address import VARIABLE, checked_address, without_password
from dlcli.sweep.ledger.claims import WAIT, Claim, Ledger
from dlcli.sweep.ledger.heartbeat import this_worker
from dlcli.sweep.ledger.opening import open_ledger
from dlcli.sweep.ledger.shared import open_storage, shared_definition
from dlcli.sweep.space.space import Axis
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import read_record

SWEEP = (*SMALL, *SPACE, "--sampler", "random", "--pruner", "none")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs a PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'dlcli[postgres]'")
    running = Server(binaries)
    try:
        running.make()
        running.start()
        yield running
    finally:
        running.remove()


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """The address of an empty database, with the password."""
    return server.make_database(request.node.name[:60])


# ------------------------------------------------------------------------------------------------------ whole sweeps


def test_killed_workers_and_a_killed_sweep_lose_and_repeat_nothing(
    server: Server, database: str, tmp_path: Path
) -> None:
    drawn, folder = random.Random(0), tmp_path / "outputs/sweeps/s"
    words = (*SWEEP, "trainer.epochs=8", "--trials", "10", "--workers", "4", "--name", "s", "--storage", database)
    parent = begin(tmp_path, *words)
    for known in (1, 3, 5):
        wait_with(parent, lambda known=known: finished(folder) >= known)
        assert kill_worker(folder, drawn)
    kill_everything(parent, folder)
    assert finished(folder) < 10
    done = sweep(tmp_path, "resume", "s", "--json", **{VARIABLE: database})
    assert done.returncode == 0, done.stderr
    check_whole(folder, 10, **{VARIABLE: database})
    check_no_password(server, tmp_path)


@pytest.mark.slow
def test_sixteen_kills_of_workers_and_four_of_everything(server: Server, database: str, tmp_path: Path) -> None:
    drawn, folder, killed = random.Random(1), tmp_path / "outputs/sweeps/s", 0
    words = (*SWEEP, "trainer.epochs=30", "--trials", "24", "--workers", "4", "--name", "s", "--storage", database)
    for round_number in range(5):
        resume = ("resume", "s", "--storage", database)
        parent = begin(tmp_path, *(resume if round_number else words))
        wait_with(parent, lambda: len(worker_pids(folder)) >= 3)
        for _ in range(4):
            if round_number == 4 or parent.poll() is not None:
                break
            time.sleep(drawn.uniform(1, 4))
            killed += kill_worker(folder, drawn)
        if round_number < 4:
            assert parent.poll() is None, "it is over too soon: make the trials longer"
            kill_everything(parent, folder)
    assert parent.wait(timeout=400) == 0, (tmp_path / "parent.log").read_text()
    assert killed >= 12
    check_whole(folder, 24, **{VARIABLE: database})
    check_no_password(server, tmp_path)
    print(f"{killed} workers and 4 whole sweeps killed, 24 trials finished, none twice")


def test_a_machine_that_sees_only_the_ledger_helps(server: Server, database: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    parent = begin(here, *SWEEP, "trainer.epochs=40", "--trials", "16", "--name", "s", "--storage", database)
    wait_for(lambda: finished(here / "outputs/sweeps/s") >= 1)
    joined = sweep(there, "join", "s", "--storage", database, "--json", PGPASSWORD="")
    assert joined.returncode == 0, joined.stderr
    assert parent.wait(timeout=60) == 0, (here / "parent.log").read_text()
    numbers = [[t["number"] for t in trials(folder / "outputs/sweeps/s")] for folder in (here, there)]
    assert sorted(numbers[0] + numbers[1]) == list(range(16)) and all(numbers), numbers
    check_no_password(server, tmp_path)


def test_a_server_that_stops_is_an_error_and_the_sweep_goes_on_later(
    server: Server, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/sweeps/s"
    words = (*SWEEP, "trainer.epochs=20", "--trials", "5", "--workers", "2", "--name", "s", "--storage", database)
    parent = begin(tmp_path, *words)
    wait_for(lambda: finished(folder) >= 1)
    server.stop()
    try:
        assert parent.wait(timeout=60) == 5
        told = (tmp_path / "parent.log").read_text()
        assert "error: the ledger at postgresql://tester@127.0.0.1" in told and "Traceback" not in told
        assert "dlcli sweep resume s" in told
        wait_for(lambda: not worker_pids(folder), 15)
        assert all("Traceback" not in log.read_text() for log in folder.glob("workers/*.log"))
        again = sweep(tmp_path, "resume", "s")
        assert again.returncode == 5 and "does not answer" in again.stderr and "Traceback" not in again.stderr
    finally:
        server.start()
    assert finished(folder) < 5
    address = server.address(database.rpartition("/")[2], password=False)
    done = sweep(tmp_path, "resume", "s", "--storage", address, "--json", PGPASSWORD=server.password)
    assert done.returncode == 0, done.stderr
    check_whole(folder, 5, **{VARIABLE: database})


def check_no_password(server: Server, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    assert not [path for path in files if server.password.encode() in path.read_bytes()]


# --------------------------------------------------------------------------------------------- who has a trial


def definition(address: str, **changes: Any) -> Definition:
    plain: dict[str, Any] = {
        "name": "s", "experiment": "digits", "words": ("digits",), "axes": (Axis("optimizer.lr", low=1e-4, high=0.1),),
        "objectives": (Objective("val/loss", "min"),), "trials": 2, "sampler": "random", "pruner": "none",
        "storage": without_password(address), "grace_s": 1.0, "created": "today",
    }  # fmt: skip
    return Definition(**plain | changes)


def sweep_folder(cwd: Path) -> Path:
    folder = cwd / "outputs/sweeps/s"
    folder.mkdir(parents=True)
    return folder


Open = Callable[..., Ledger]


@pytest.fixture
def opened(database: str, tmp_path: Path) -> Iterator[Open]:
    """The ledger as a machine whose folder has this name sees it."""
    ledgers: list[Ledger] = []

    def open_here(machine: str, /, **changes: Any) -> Ledger:
        (tmp_path / machine).mkdir(exist_ok=True)
        ledgers.append(open_ledger(tmp_path / machine, definition(database, **changes), storage=database))
        return ledgers[-1]

    yield open_here
    for ledger in ledgers:
        ledger.close()


def claimed(ledger: Ledger, **worker: Any) -> Claim:
    claim = ledger.claim(this_worker(**worker))
    assert isinstance(claim, Claim)
    return claim


def test_a_silent_worker_of_another_machine_is_replaced_after_the_grace(opened: Open) -> None:
    far, near = (opened(name, trials=1) for name in ("far", "near"))
    lost = claimed(far, machine="elsewhere")
    far.beat(lost.record.worker["id"], 1)
    me = this_worker()
    assert near.claim(me) is WAIT, "its heartbeat was seen for the first time just now"
    taken: list[Any] = []
    wait_for(lambda: taken.append(near.claim(me)) or taken[-1] is not WAIT, 20)
    assert isinstance(taken[-1], Claim) and len(taken) > 1
    assert taken[-1].record.number == lost.record.number and taken[-1].record.point == lost.record.point
    # the first was not dead, only cut off: its result comes too late
    late = lost.record.be(state="completed", values=[0.1], metrics={"val/loss": 0.1})
    assert not far.finish(lost, late)
    assert read_record(far.folder, 0).state == "running"
    far.release(lost)
    assert [record.worker["id"] for record in near.records()] == [me["id"]], "nor does it hand back what it lost"
    assert near.finish(taken[-1], taken[-1].record.be(state="completed", values=[0.2]))
    assert [record.values for record in far.records()] == [[0.2]]


def test_a_worker_of_another_machine_that_beats_keeps_its_trial(opened: Open) -> None:
    far, near = (opened(name, trials=1) for name in ("far", "near"))
    held = claimed(far, machine="elsewhere")
    numbers = iter(range(1, 1000))
    claims: list[Any] = []

    def look() -> bool:
        far.beat(held.record.worker["id"], next(numbers))
        claims.append(near.claim(this_worker()))
        return near.watch.grace_s * 40 < len(claims)

    wait_for(look, 60)
    assert set(map(id, claims)) == {id(WAIT)}


def test_machines_that_share_no_folder_draw_one_sequence(opened: Open) -> None:
    ledgers = [opened(name, trials=6) for name in ("a", "b")]
    claims = [claimed(ledgers[i % 2]) for i in range(6)]
    assert [claim.record.number for claim in claims] == list(range(6))
    alone = opened("alone", trials=6, name="t")
    assert [claimed(alone).record.point for _ in range(6)] == [claim.record.point for claim in claims]
    assert ledgers[0].claim(this_worker()) is WAIT


def test_more_trials_asked_for_on_one_machine_count_on_all(opened: Open, database: str) -> None:
    opened("a", trials=2)
    assert opened("b", trials=5).definition.trials == 5
    assert opened("a", trials=2).definition.trials == 5
    assert shared_definition("s", database).trials == 5


def test_two_sweeps_of_one_name_are_not_mixed(opened: Open, database: str, tmp_path: Path) -> None:
    opened("a")
    with pytest.raises(ConfigError, match="another sweep called s"):
        opened("b", created="tomorrow")
    done = sweep(tmp_path, *SWEEP, "--trials", "1", "--name", "s", "--storage", database)
    assert done.returncode == 2 and "has a sweep s already" in done.stderr
    assert not (tmp_path / "outputs/sweeps/s").exists()
    with pytest.raises(ConfigError, match="no sweep t"):
        shared_definition("t", database)
    definition(database, storage=None).write(sweep_folder(tmp_path))
    done = sweep(tmp_path, "join", "s", "--storage", database)
    assert done.returncode == 2 and "another sweep, with a ledger of its own" in done.stderr


# --------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    ["mysql://u:canary@h/d", "postgresql://u:canary@h", "u:canary@h/d", "postgresql://u:can#ary@h/d",
     "postgresql://u:canary@h:port/d", "postgresql://u:ca/nary@h/d", "postgresql://u:canary@[h/d"],
)  # fmt: skip
def test_what_is_no_address_is_told_without_its_password(address: str) -> None:
    with pytest.raises(ConfigError) as told:
        checked_address(address)
    assert "nary" not in f"{told.value} {told.value.hint}" or "//" not in address


def test_a_password_is_cut_out_wherever_it_stands() -> None:
    assert without_password("postgresql://u:p@ss@h:5/d") == "postgresql://u@h:5/d"
    assert without_password("postgresql://h/d?user=u&password=p&sslmode=require") == (
        "postgresql://h/d?user=u&password=&sslmode=require"
    )
    assert without_password("postgresql://u@h/d") == "postgresql://u@h/d"


def test_without_a_server_nothing_begins(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    address = "postgresql://u:canary@127.0.0.1:1/d"
    done = sweep(tmp_path, *SWEEP, "--trials", "1", "--storage", address)
    assert done.returncode == 5 and "does not answer" in done.stderr and "Traceback" not in done.stderr
    assert "canary" not in done.stderr and not (tmp_path / "outputs").exists()


def test_a_wrong_password_is_told_in_a_line(server: Server, database: str, tmp_path: Path) -> None:
    done = sweep(tmp_path, "join", "s", "--storage", database.replace(server.password, "canary2"))
    assert done.returncode == 5 and "password" in done.stderr and "canary2" not in done.stderr, done.stderr


def test_a_missing_driver_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "dlcli.sweep.ledger.shared.find_spec", lambda name: None if name == "psycopg" else real(name)
    )  # fmt: skip
    with pytest.raises(EnvironmentFault) as told:
        open_storage("postgresql://u@h/d")
    assert told.value.hint == "pip install 'dlcli[postgres]'"
