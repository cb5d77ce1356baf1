"""W&B by a process of its own: what reaches its files, what survives a kill, what never gets in, what never hangs."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import dlcli, events_of

from dlcli.errors import TrackerError
from dlcli.reporting import wandb_tracker
from dlcli.reporting.wandb_follower import EventTail, as_row
from dlcli.reporting.wandb_tracker import Follower, has_key, new_run_id, resolve_mode, start_follower, sync_run
from dlcli.runs.folder import RunFolder
from dlcli.runs.redaction import redact

REPO = Path(__file__).resolve().parents[1]
DUMMY_KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # neither a key nor settings of the person testing
    monkeypatch.delenv("NETRC", raising=False)
    return RunFolder.create(tmp_path / "outputs", "digits")


def write(run: RunFolder, event: str, **more: Any) -> None:
    with run.events.open("a") as file:
        file.write(json.dumps(redact({"event": event, **more})) + "\n")


def start(run: RunFolder, mode: str = "auto", **more: Any) -> Follower:
    follower = start_follower(run.path, project="test", mode=mode, run_id=new_run_id(), **more)
    assert follower is not None
    return follower


def end(follower: Follower) -> str:
    """Its last line; the process is gone afterwards."""
    try:
        return follower.finish(30)
    finally:
        follower.process.kill()


# --------------------------------------------------------------------------------- reading back what wandb has written


def records(run: RunFolder) -> Iterator[Any]:
    """Every record in the run's .wandb files (W&B ships no reader): LevelDB's log format, up to a torn end."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(run.wandb.glob("offline-run-*/*.wandb")):
        for payload in _log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(payload)
            yield record


def _log_records(data: bytes) -> Iterator[bytes]:
    """Blocks of 32 KiB; each piece <crc32, length, type>, type 1 whole, 2 first, 3 middle, 4 last."""
    at, parts = 7, b""  # after the file's header ":W&B", 0xBEE1, 0
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind not in (1, 2, 3, 4) or at + 7 + length > len(data):
            return
        parts = data[at + 7 : at + 7 + length] if kind in (1, 2) else parts + data[at + 7 : at + 7 + length]
        if kind in (1, 4):
            yield parts
        at += 7 + length


def history(run: RunFolder) -> list[dict[str, Any]]:
    rows = []
    for record in records(run):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


# ------------------------------------------------------------------------------------------------------ online or not


def test_a_key_is_looked_for_where_wandb_would(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    nothing = {"NETRC": str(tmp_path / "none")}
    assert not has_key(nothing)
    assert has_key({"WANDB_API_KEY": "x", **nothing}) and has_key({"WANDB_IDENTITY_TOKEN_FILE": "x", **nothing})
    assert has_key({"NETRC": str(netrc)})
    assert not has_key({"NETRC": str(netrc), "WANDB_BASE_URL": "https://wandb.mine.org"})
    assert resolve_mode(nothing) == "offline"
    assert resolve_mode({"WANDB_API_KEY": "x"}) == "online"
    assert resolve_mode({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}) == "offline"
    assert resolve_mode({"WANDB_MODE": "disabled"}) == "disabled"


def test_disabled_starts_nothing_and_online_needs_a_key(run: RunFolder) -> None:
    assert start_follower(run.path, project="test", mode="disabled", run_id="x") is None
    with pytest.raises(TrackerError) as refused:
        start_follower(run.path, project="test", mode="online", run_id="x")
    assert refused.value.code == 7 and refused.value.hint and "wandb login" in refused.value.hint
    with pytest.raises(TrackerError, match="no W&B key"):
        sync_run(run)
    assert not run.wandb.exists()


def test_the_training_process_never_imports_wandb(run: RunFolder) -> None:
    modules = "dlcli.reporting.wandb_tracker as tracker, dlcli.reporting.wandb_follower"
    code = f"import sys, {modules}; tracker.resolve_mode(); sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


# --------------------------------------------------------------------------------------------------- reading the events


def test_each_event_is_read_once_also_after_the_file_was_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [f'{{"event": "values", "step": {i}}}\n' for i in range(6)]
    tail = EventTail(path)
    assert tail.read() == []
    path.write_text("".join(lines[:4]) + lines[4][:9])
    assert [event["step"] for event in tail.read()] == [0, 1, 2, 3]
    path.write_text("".join(lines[:2]))  # resumed at an older checkpoint, in place
    assert tail.read() == []
    path.write_text("".join(lines[:2]) + "torn\n" + "".join(lines[4:]))
    assert [event["step"] for event in tail.read()] == [4, 5]


def test_a_row_carries_its_step_and_only_numbers() -> None:
    epoch = {"event": "epoch", "step": 60, "epoch": 3, "metrics": {"val/loss": 0.5, "x": float("nan")}, "lr": 0.1}
    assert as_row(epoch) == {"val/loss": 0.5, "lr": 0.1, "trainer/step": 60, "epoch": 3}
    assert as_row({"event": "evaluated", "split": "test", "metrics": {"accuracy": 0.9}}) == {"test/accuracy": 0.9}
    assert as_row({"event": "note", "message": "x"}) == {}


# ---------------------------------------------------------------------------------------------------- with wandb itself


def test_everything_arrives_offline_and_no_secret_does(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = {"WANDB_API_KEY": "canaryA" + DUMMY_KEY, "OTHER_TOKEN": "canaryB123456"}
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    config = {"optimizer": {"lr": 0.1}, "api_key": "canaryC1234", "url": "http://u:canaryD@h/", "s": "canaryB123456"}
    write(run, "run_started", config=config, overrides=["x.token=canaryE1234"], experiment="digits")
    follower = start(run, "offline")
    for step in range(20):
        write(run, "values", step=step, epoch=0, values={"train/loss": step / 2})
    write(run, "run_finished", status="completed", metrics={"val/accuracy": 0.75})
    assert "kept offline; upload with: dlcli sync" in end(follower)
    assert [row["trainer/step"] for row in history(run)] == list(range(20))
    kinds = {record.WhichOneof("record_type") for record in records(run)}
    assert {"run", "history", "config", "summary", "exit"} <= kinds
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        assert b"canary" not in path.read_bytes(), path
    assert not Path(os.environ["HOME"]).exists()  # and nothing was written elsewhere


@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_at_any_moment_costs_at_most_a_second(run: RunFolder, seed: int) -> None:
    write(run, "run_started", config={})
    follower = start(run)
    deadline = time.monotonic() + 30
    while not list(run.wandb.glob("offline-run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.05)
    written: list[float] = []  # when each step was written
    stop = time.monotonic() + random.Random(seed).uniform(2.5, 4.0)
    while time.monotonic() < stop:
        write(run, "values", step=len(written), epoch=0, values={"train/loss": 1.0})
        written.append(time.monotonic())
        time.sleep(0.02)
    for pid in [follower.process.pid, *_children(follower.process.pid)]:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    follower.process.wait()
    kept = {row["trainer/step"] for row in history(run)}
    lost = [killed - at for step, at in enumerate(written) if step not in kept]
    assert len(kept) > 20 and max(lost, default=0.0) <= 1.0, lost


def _children(pid: int) -> list[int]:
    """The processes under `pid`, wandb-core among them."""
    found = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def test_the_follower_ends_when_the_training_is_killed(run: RunFolder) -> None:
    training = subprocess.Popen(["sleep", "60"])
    write(run, "run_started", config={})
    write(run, "values", step=1, epoch=0, values={"train/loss": 1.0})
    follower = start(run, pid=training.pid)
    os.kill(follower.process.pid, signal.SIGCONT)
    time.sleep(0.5)
    training.kill()  # a zombie until it is waited for: it counts as gone
    assert follower.process.wait(20) == 0
    training.wait()
    assert [row["trainer/step"] for row in history(run)] == [1]


def test_a_server_that_hangs_costs_the_charts_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", DUMMY_KEY)
        write(run, "run_started", config={})
        follower = start(run)
        assert follower.mode == "online"
        write(run, "values", step=1, epoch=0, values={"train/loss": 1.0})
        write(run, "run_finished", status="completed", metrics={})
        started = time.monotonic()
        assert "still busy" in follower.finish(1.0)
        assert time.monotonic() - started < 2.0
        follower.process.returncode = None
        assert "kept offline (" in end(follower)
    assert [row["trainer/step"] for row in history(run)] == [1]


def test_sync_without_an_answer_ends_with_a_remedy(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", DUMMY_KEY)
        with pytest.raises(TrackerError, match="no events"):
            sync_run(run)
        write(run, "run_started", config={})
        started = time.monotonic()
        with pytest.raises(TrackerError, match="was not uploaded") as failed:
            sync_run(run, connect_s=5.0)
        assert time.monotonic() - started < 20
    assert failed.value.hint and "dlcli sync" in failed.value.hint


def test_a_missing_wandb_stops_nobody(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "find_spec", lambda name: None)
    assert start_follower(run.path, project="test", mode="auto", run_id="x") is None
    with pytest.raises(TrackerError, match="not installed"):
        start_follower(run.path, project="test", mode="online", run_id="x")


def test_a_run_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = sorted(temporary.iterdir())
    words = ("digits", "tracker=wandb", "trainer.epochs=2", "runtime.threads=1", "runtime.device=cpu", "--json")
    done = dlcli(
        "train", *words, cwd=tmp_path, TMPDIR=str(temporary), WANDB_MODE="offline", HOME=str(tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    run = RunFolder(Path(events_of(done.stdout)[-1]["run"]))
    until = time.monotonic() + 60
    while sorted(temporary.iterdir()) != before and time.monotonic() < until:  # the follower ends a little later
        time.sleep(0.1)
    assert json.loads((run.wandb / wandb_tracker.STATUS).read_text())["state"] == "finished"
    assert list(run.wandb.glob("offline-run-*")), "wandb was at work"
    assert sorted(temporary.iterdir()) == before
