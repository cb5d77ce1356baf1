"""Sweeps as a user starts them, killed at random, and what must hold of them afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from program import dlcli, environment, events_of

SMALL = ("digits", "tracker=none", "trainer.epochs=3", "model.hidden=[32]", "runtime=cpu", "runtime.threads=1")
WORKERS = {b"dlcli.sweep.workers.worker", b"dlcli.sweep.workers.job"}  # as python -m runs them
SPACE = ("optimizer.lr=1e-4:1e-1:log", "regularization.dropout=0:0.5")


def sweep(cwd: Path, *words: str, timeout: float = 400, **env: str) -> subprocess.CompletedProcess[str]:
    """One worker, unless the words say otherwise."""
    starts = words[0] not in ("resume", "join", "status", "top", "apply") and "--workers" not in words
    return dlcli("sweep", *words, *(("--workers", "1") if starts else ()), cwd=cwd, timeout=timeout, **env)


def sweep_finished(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last event, of a sweep that was run with --json to its end."""
    assert done.returncode == 0, (done.returncode, done.stderr, done.stdout[-2000:])
    return events_of(done.stdout)[-1]


def begin(cwd: Path, *words: str, **env: str) -> subprocess.Popen[bytes]:
    """`dlcli sweep WORDS` in the background, in a process group of its own."""
    with (cwd / "parent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dlcli", "sweep", *words],
            cwd=cwd,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def worker_pids(folder: Path) -> list[int]:
    """The processes that work on the sweep in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if {b"dlcli.sweep.workers.worker", b"dlcli.sweep.workers.job"} & set(words) and str(
                    folder
                ).encode() in words:
                    found.append(int(entry.name))
    return sorted(found)


def kill_worker(folder: Path, drawn: random.Random) -> bool:
    """SIGKILL one worker at random; whether there was one."""
    pids = worker_pids(folder)
    if pids:
        with suppress(ProcessLookupError):
            os.kill(drawn.choice(pids), signal.SIGKILL)
    return bool(pids)


def kill_everything(parent: subprocess.Popen[bytes], folder: Path) -> None:
    """SIGKILL to parent and workers at once; no worker is left that could save."""
    for pid in [*worker_pids(folder), parent.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while worker_pids(folder) and time.monotonic() < until:
        for pid in worker_pids(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def wait_for(condition: Any, timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


def wait_with(parent: subprocess.Popen[bytes], condition: Any, timeout_s: float = 120) -> None:
    """Wait for something that a sweep in the background does."""
    wait_for(lambda: condition() or parent.poll() is not None, timeout_s)
    assert condition(), f"the sweep has ended with {parent.poll()}"


def finished(folder: Path) -> int:
    return sum(trial.get("state") not in ("running", "waiting") for trial in trials(folder))


def trials(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("[0-9]*/trial.json")):
        with suppress(ValueError, OSError):
            found.append(json.loads(path.read_text()))
    return found


def ledger_states(folder: Path, **env: str) -> list[str]:
    """Optuna's own view of every trial of an embedded ledger, read by a process of its own."""
    code = (
        "import sys; from pathlib import Path; from dlcli.sweep.study.definition import read_definition;"
        "from dlcli.sweep.ledger.opening import open_ledger; f = Path(sys.argv[1]);"
        "print(*(t.state.name for t in open_ledger(f, read_definition(f)).trials()))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()


def check_whole(folder: Path, count: int, **env: str) -> None:
    """None lost, none twice, none stuck: in the folders, in the ledger, and in each trial's own record."""
    found = trials(folder)
    assert [trial["number"] for trial in found] == list(range(count))
    assert all(trial["state"] not in ("running", "waiting") for trial in found), found
    states = ledger_states(folder, **env)
    assert len(states) == count and not {"RUNNING", "WAITING"} & set(states), states
    for trial in found:
        events = events_of((folder / f"{trial['number']:04}" / "events.jsonl").read_text())
        kinds = [event["event"] for event in events]
        assert kinds.count("run_started") == kinds.count("run_finished") == 1, (trial["number"], kinds)
        steps = [event["step"] for event in events if event["event"] == "epoch"]
        assert steps == sorted(set(steps)), "each evaluation stands there once"
    points = [json.dumps(trial["point"], sort_keys=True) for trial in found if "reuse_of" not in trial]
    assert len(set(points)) == len(points)
