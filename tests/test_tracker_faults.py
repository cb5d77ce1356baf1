"""Whatever becomes of W&B, a training ends with the same weights, exit 0, and soon."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from program import QUICK, dlcli, environment

from dlcli.runs.events import read_events
from dlcli.runs.find import all_runs
from dlcli.runs.folder import RunFolder

PATIENCE_S = 120  # against a hang only
LONGEST_WAIT_S = (
    60  # between the last epoch and the end of the program: the promise is 10, a busy machine is given time
)
KEY = "0123456789abcdef0123456789abcdef01234567"
LONG = "trainer.epochs=200"
TRACKED = tuple(word for word in QUICK if word != "tracker=none")


def start(folder: Path, *words: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-P", "-m", "dlcli", "train", *TRACKED, *words]
    home = {"HOME": str(folder / "home"), "NETRC": str(folder / "netrc")}
    return subprocess.Popen(
        command, cwd=folder, env=environment(**home | env), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], folder: Path) -> RunFolder:
    """The run, which completed; the followers that outlive it are ended."""
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    (run,) = all_runs(folder / "outputs")
    for pid in followers(run):
        os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0, stdout + stderr
    assert "Traceback" not in stdout + stderr and "ogin" not in stdout + stderr.replace("wandb login", "")
    assert run.read_summary()["status"] == "completed"
    return run


def followers(run: RunFolder) -> list[int]:
    """The processes that feed W&B from this run: the follower, and wandb-core below it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                here = os.readlink(entry / "cwd")
            except OSError:
                continue
            is_follower = b"dlcli.reporting.wandb_follower" in words and str(run.path.resolve()).encode() in words
            if is_follower or (b"wandb-core" in b" ".join(words) and here.startswith(str(run.path.resolve()))):
                found.append(int(entry.name))
    return found


def weights(run: RunFolder) -> dict[str, str]:
    """sha256 of every tensor file of the last and the best checkpoint."""
    files = [
        run.checkpoints / which / name
        for which in ("last", "best")
        for name in ("model.safetensors", "state.safetensors")
    ]
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("untracked")
    return weights(finish(start(folder, "tracker=none"), folder))


@pytest.fixture(scope="module")
def untracked_and_long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("alone")
    return weights(finish(start(folder, "tracker=none", LONG), folder))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts every connection and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def accept() -> None:
        while True:
            try:
                connections.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in connections:
        connection.close()


def assert_bounded(run: RunFolder, ended: float) -> None:
    assert ended - run.summary.stat().st_mtime < LONGEST_WAIT_S


def test_offline_without_network_and_key(untracked: dict[str, str], tmp_path: Path) -> None:
    prefix = ("unshare", "-rn") if can_unshare() else ()
    process = start(tmp_path, prefix=prefix)
    run = finish(process, tmp_path)
    assert weights(run) == untracked
    notes = [event["message"] for event in read_events(run.events) if event["event"] == "note"]
    assert any("offline" in note and "dlcli sync" in note for note in notes)
    assert list(run.wandb.glob("offline-run-*/*.wandb"))


def can_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def test_a_key_and_a_network_that_is_cut(untracked: dict[str, str], tmp_path: Path) -> None:
    if not can_unshare():
        pytest.skip("needs unshare -rn, to be without a network")
    run = finish(start(tmp_path, prefix=("unshare", "-rn"), WANDB_API_KEY=KEY), tmp_path)
    assert weights(run) == untracked
    assert_bounded(run, time.time())


def test_a_key_and_a_server_that_hangs(untracked: dict[str, str], silent_server: str, tmp_path: Path) -> None:
    run = finish(start(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=silent_server), tmp_path)
    assert weights(run) == untracked
    assert_bounded(run, time.time())


def everything(run: RunFolder) -> list[int]:
    return followers(run)


def core_alone(run: RunFolder) -> list[int]:
    return [pid for pid in followers(run) if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("chosen", [everything, core_alone], ids=["follower", "wandb-core"])
def test_its_processes_are_killed_during_training(
    chosen: Callable[[RunFolder], list[int]], untracked_and_long: dict[str, str], tmp_path: Path
) -> None:
    """Against the same training without a tracker, long enough for W&B to have begun."""
    process = start(tmp_path, LONG)
    until = time.monotonic() + PATIENCE_S
    killed: list[int] = []
    while not killed and process.poll() is None and time.monotonic() < until:
        runs = all_runs(tmp_path / "outputs")
        if runs and list(runs[0].wandb.glob("offline-run-*/*.wandb")):
            for pid in chosen(runs[0]):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.02)
    run = finish(process, tmp_path)
    assert killed, "W&B had begun before the training ended"
    assert_bounded(run, time.time())
    assert weights(run) == untracked_and_long


def test_the_training_process_never_imports_wandb(tmp_path: Path) -> None:
    script = (
        "import sys; from dlcli.cli import run; code = run(sys.argv[1:]);"
        "print(code, 'wandb' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "train", *TRACKED, "tracker.mode=offline"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.stderr.split()[-2:] == ["0", "False"], done.stderr


def test_mode_online_without_a_key_is_told_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "tracker.mode=online")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7
    assert "error: no W&B key is configured" in stderr and "WANDB_API_KEY" in stderr and "Traceback" not in stderr
    assert "epoch=" not in stdout, "nothing was trained"


def test_sync_without_a_key(quick_run: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    done = dlcli("sync", str(quick_run), cwd=tmp_path, **env)
    assert (done.returncode, done.stdout) == (7, "")
    assert "error: no W&B key is configured" in done.stderr and "wandb login" in done.stderr
    as_json = dlcli("sync", str(quick_run), "--json", cwd=tmp_path, **env)
    assert as_json.returncode == 7
    assert all(json.loads(line) for line in as_json.stdout.splitlines())
