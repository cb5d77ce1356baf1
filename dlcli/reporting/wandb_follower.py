"""The process that feeds Weights & Biases: `python -m dlcli.reporting.wandb_follower RUN_DIR`.

wandb_tracker.py starts it; instead of a run's folder it takes a file that lists several.

It reads <run>/events.jsonl from the beginning, goes on as the file grows, and ends when the run is finished or the
training process is gone. Every row carries its own step (`trainer/step`) as the axis of all charts, so that rows that
are sent a second time, after a resume, fall on their old places.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlcli.errors import printable
from dlcli.reporting.wandb_tracker import END, PLAN, QUEUE, STATUS
from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.folder import RunFolder
from dlcli.runs.redaction import redact

POLL_S = 0.2
QUIET_S = 1.0  # a file that has not grown for so long has ended, once its writer is gone
FINISH_S = 300.0  # to upload what is left at the end
STEP = "trainer/step"

SETTINGS: dict[str, Any] = {
    "init_timeout": 10,
    "finish_timeout": FINISH_S,
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 0.5,  # seconds a SIGKILL can cost; the default is 15
}


def main(what: str) -> int:
    # The training decides when to stop, on its own signals; its end is this process's end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not what.endswith(QUEUE):
        return follow_one(Path(what))
    with contextlib.suppress(OSError):
        os.nice(10)  # the next trials are being trained
    return max((follow_one(path) for path in queued(Path(what))), default=0)


def follow_one(path: Path) -> int:
    run = RunFolder(path)
    plan = read_json(run.wandb / PLAN) or {}
    status = Status(run, str(plan.get("mode")))
    try:
        follow(run, plan, status)
        return 0
    except BaseException as error:
        status.write("failed", error=f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            (run.wandb / "follower.log").write_text(redact(traceback.format_exc()), errors="backslashreplace")
        return 1


def queued(path: Path) -> Iterator[Path]:
    """Yield the runs of a queue's file as they arrive, until its end line or until the last one's worker is gone."""
    done, pid, born = 0, None, None
    while True:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines[done:]:
            if line == END:
                return
            pid = (read_json(RunFolder(Path(line)).wandb / PLAN) or {}).get("pid")
            born = born or _start_of(pid)
            yield Path(line)
        if len(lines) == done and (born is None or _start_of(pid) != born):
            return
        done = len(lines)
        time.sleep(POLL_S)


def follow(run: RunFolder, plan: dict[str, Any], status: Status) -> None:
    tail = EventTail(run.events)
    events = wait_for_events(tail, plan.get("pid"), quiet_s=0.0 if plan.get("is_queued") else QUIET_S)
    first = next(events, None)
    if first is None:  # the training ended before it began
        status.write("finished")
        return
    wandb_run = open_wandb(run, plan, first, status)
    finished: dict[str, Any] | None = None
    for event in _chain(first, events):
        send(wandb_run, event)
        finished = event if event.get("event") == "run_finished" else None
    ended_well = finished is None and plan.get("pid") is None
    exit_code = 0 if ended_well or (finished or {}).get("status") in ("completed", "pruned") else 1
    stuck = threading.Timer(FINISH_S + 30, _give_up)  # finish() of an older wandb knows no time limit
    stuck.daemon = True
    stuck.start()
    wandb_run.finish(exit_code=exit_code)
    stuck.cancel()
    status.write("finished")


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


# ----------------------------------------------------------------------------------------------------- reading the file


class EventTail:
    """The lines added to a growing file, each line once, also when the file is cut back or replaced at a resume."""

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._inode = 0, -1
        self._seen: set[int] = set()

    def read(self) -> list[dict[str, Any]]:
        """The events that are new since the last call; a line without its end waits for the next."""
        try:
            with self.path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._offset:
                    self._offset, self._inode = 0, now.st_ino
                file.seek(self._offset)
                data = file.read(now.st_size - self._offset)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := self._new_event(line)) is not None]

    def _new_event(self, line: bytes) -> dict[str, Any] | None:
        if hash(line) in self._seen:
            return None
        self._seen.add(hash(line))
        try:
            event = json.loads(line)
        except ValueError:
            return None
        return event if isinstance(event, dict) else None


def wait_for_events(tail: EventTail, pid: int | None, quiet_s: float = QUIET_S) -> Iterator[dict[str, Any]]:
    """All events, as they come, until the run is finished or process `pid` is gone (None: until the file's end)."""
    born = _start_of(pid)
    quiet_since, finished = time.monotonic(), False
    while True:
        alive = pid is not None and born is not None and _start_of(pid) == born  # looked at before the reading
        events = tail.read()
        for event in events:
            finished = event.get("event") == "run_finished"
            yield event
        if events:
            quiet_since = time.monotonic()
        elif (finished or not alive) and (pid is None or time.monotonic() - quiet_since >= quiet_s):
            return
        else:
            time.sleep(POLL_S)


def _start_of(pid: int | None) -> str | None:
    """When a process was started, so that a reused number is not taken for it; None when it is gone."""
    if pid is None:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    try:  # a system without /proc
        os.kill(pid, 0)
        return "alive"
    except OSError:
        return None


# -------------------------------------------------------------------------------------------------------- telling W&B


class Status:
    """How the follower fares, in <run>/wandb/status.json, for the training and `dlcli sync` to read."""

    def __init__(self, run: RunFolder, mode: str):
        self.run, self.said = run, {"mode": mode}

    def write(self, state: str, **more: str | None) -> None:
        self.said |= {"state": state, **{k: printable(v, limit=500) for k, v in more.items() if v}}
        with contextlib.suppress(Exception):  # the folder may be gone
            write_atomically(self.run.wandb / STATUS, json.dumps(redact(self.said)).encode())


def open_wandb(run: RunFolder, plan: dict[str, Any], first: dict[str, Any], status: Status) -> Any:
    """Open the W&B run, online if so planned; where that fails and the plan allows it, offline."""
    import wandb

    try:
        wandb_run = _init(run, plan, first, str(plan["mode"]))
    except Exception as error:
        if plan["mode"] != "online" or not plan["fall_back"]:
            raise
        wandb.teardown()
        status.said |= {"mode": "offline", "error": printable(redact(f"{type(error).__name__}: {error}"))}
        wandb_run = _init(run, plan, first, "offline")
    status.write("following", url=wandb_run.url)
    wandb_run.define_metric(STEP)
    wandb_run.define_metric("*", step_metric=STEP)
    return wandb_run


def _init(run: RunFolder, plan: dict[str, Any], first: dict[str, Any], mode: str) -> Any:
    import wandb

    known = wandb.Settings.model_fields
    return wandb.init(
        project=plan["project"],
        entity=plan.get("entity"),
        name=plan["name"],
        group=plan.get("group"),
        id=plan["run_id"],
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        dir=str(run.path),
        config=_config(first),
        settings=wandb.Settings(**{name: value for name, value in SETTINGS.items() if name in known}),
    )


def _config(event: dict[str, Any]) -> dict[str, Any]:
    """The run's config, and under `dlcli` how it was started."""
    config = event.get("config")
    about = {name: event[name] for name in ("experiment", "overrides", "seed", "versions") if name in event}
    return redact({**(config if isinstance(config, dict) else {}), "dlcli": about})


def send(wandb_run: Any, event: dict[str, Any]) -> None:
    """Tell W&B what one event means: a row, a part of the config, or a part of the summary."""
    kind = event.get("event")
    if kind == "run_started":
        wandb_run.config.update(_config(event), allow_val_change=True)
    elif kind == "run_prepared":
        prepared = {name: value for name, value in event.items() if name != "event"}
        wandb_run.config.update({"prepared": redact(prepared)}, allow_val_change=True)
    elif kind == "run_finished":
        about = {name: event.get(name) for name in ("status", "reason", "best_epoch", "seconds", "peak_memory_mb")}
        wandb_run.summary.update({**_numbers(event.get("metrics")), **{f"run/{k}": v for k, v in about.items() if v}})
    elif row := as_row(event):
        wandb_run.log(row)


def as_row(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event as one row of the charts, {} for events that have none."""
    kind = event.get("event")
    if kind == "values":
        row = _numbers(event.get("values"))
    elif kind == "epoch":
        row = _numbers(event.get("metrics")) | _numbers({k: event.get(k) for k in ("lr", "examples_per_s")})
    elif kind == "evaluated":
        split = event.get("split", "test")
        row = {k if "/" in k else f"{split}/{k}": v for k, v in _numbers(event.get("metrics")).items()}
    else:
        return {}
    return row | _numbers({STEP: event.get("step"), "epoch": event.get("epoch")}) if row else {}


def _numbers(values: Any) -> dict[str, float]:
    """W&B draws numbers; NaN and infinities are left out, since its charts break at them."""
    if not isinstance(values, dict):
        return {}
    return {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def in_own_temporary_folder(what: str) -> int:
    """`main`, with a temporary folder of its own: wandb makes two at its import, which os._exit would leave."""
    try:
        folder = tempfile.mkdtemp(prefix="dlcli-follower-")
    except OSError:  # the tracker reports what wandb says about it
        return main(what)
    os.environ["TMPDIR"] = tempfile.tempdir = folder  # for wandb's own processes, and for this one
    try:
        return main(what)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_up() -> None:
    """End at once, in a thread that watches over one that hangs."""
    if tempfile.tempdir and Path(tempfile.tempdir).name.startswith("dlcli-follower-"):
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    os._exit(
        in_own_temporary_folder(sys.argv[1])
    )  # everything is written; wandb's own farewell waits 20 s for a server that hangs
