"""Workers on Ray: a cluster of this machine, with workers and actors that are killed in the middle of trials."""

from __future__ import annotations

import os
import random
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from sweeping import (
    SMALL,
    SPACE,
    begin,
    check_whole,
    finished,
    kill_worker,
    sweep,
    trials,
    wait_for,
    wait_with,
    worker_pids,
)

from dlcli.errors import ConfigError, EnvironmentFault
from dlcli.sweep.workers.launchers import Launch, read_launch

# trials of some seconds: a worker can be met in the middle of one
SWEEP = (*SMALL, *SPACE, "trainer.epochs=60", "--sampler", "random", "--pruner", "none", "--name", "s")
RAY = ("launcher=ray", "launcher.address=local")


def keeper_pids() -> list[int]:
    """The actors' processes, which Ray names after them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(b"ray::Keeper"):
                    found.append(int(entry.name))
    return found


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcli.sweep.workers.launchers.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as told:
        Launch("ray").check()
    assert told.value.hint == "pip install 'dlcli[ray]'"


def test_settings_are_of_one_launcher() -> None:
    assert read_launch(["launcher=ray", "launcher.gpus=1"])[1].is_on_cpu() is False
    with pytest.raises(ConfigError) as told:
        read_launch(["launcher=ray", "launcher.partition=gpu"])
    assert "address, cpus, gpus, mem_gb" in told.value.problems[0].message


@pytest.mark.slow
def test_killed_workers_and_actors_lose_and_repeat_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = tmp_path / "outputs/sweeps/s"
    parent = begin(tmp_path, *SWEEP, *RAY, "--trials", "6", "--workers", "2")
    wait_with(parent, lambda: finished(folder) >= 1)
    assert kill_worker(folder, random.Random(0))
    wait_with(parent, lambda: finished(folder) >= 2)
    os.kill(keeper_pids()[0], signal.SIGKILL)
    assert parent.wait(timeout=240) == 0, (tmp_path / "parent.log").read_text()
    check_whole(folder, 6)
    told = (tmp_path / "parent.log").read_text()
    assert "was ended by SIGKILL; another takes its trial up" in told and "is gone; another" in told
    assert not worker_pids(folder) and not keeper_pids()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_nobody_and_goes_on(number: int, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = tmp_path / "outputs/sweeps/s"
    # room for two workers, and a third that waits
    words = (*SWEEP, *RAY, "trainer.epochs=400", "--trials", "3", "--workers", "3")
    parent = begin(tmp_path, *words)
    wait_with(parent, lambda: any((folder / "0000/checkpoints").glob("step-*")))
    os.kill(parent.pid, number)
    assert parent.wait(timeout=100) == (143 if number == signal.SIGTERM else -9), (tmp_path / "parent.log").read_text()
    wait_for(lambda: not worker_pids(folder), 30)
    assert finished(folder) < 3
    if number == signal.SIGTERM:  # after a SIGKILL Ray kills what its actors have started, and the ledger finds it dead
        assert all(trial["state"] != "running" for trial in trials(folder))
    done = sweep(tmp_path, "resume", "s", "--json")
    assert done.returncode == 0, done.stderr
    check_whole(folder, 3)
    assert '"run_resumed"' in (folder / "0000/events.jsonl").read_text()


def test_a_cluster_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address in ("auto", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "nowhere"):
        words = (*SWEEP, "launcher=ray", f"launcher.address={address}", "--trials", "1")
        done = sweep(tmp_path, *words, RAY_TMPDIR=str(tmp_path))
        assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
        assert f"launcher.address={address} cannot be used" in done.stderr and "ray start --head" in done.stderr
    assert not (tmp_path / "outputs").exists()
