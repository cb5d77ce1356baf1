"""Workers on this machine: a process each, with a device of its own, watched over and started again when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlcli.errors import EnvironmentFault
from dlcli.launch import dying_with, signal_name, usable_cores
from dlcli.sweep.address import VARIABLE

MORE = 75  # a worker's exit code: it has done its trial, and another is to go on in its place (EX_TEMPFAIL)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)
MOST_FALLS = 5  # of one worker in a row, without news of any trial: it cannot even begin


def visible_gpus() -> list[str]:
    """The GPUs that workers may be given, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name for name in asked.split(",") if name and name != "-1"]
    with suppress(OSError):
        return [str(i) for i in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    return []


def threads_each(workers: int) -> int:
    return max(1, usable_cores() // workers)


class Workers:
    """count: how many at once; storage: the full address of a shared ledger."""

    def __init__(self, folder: Path, count: int, storage: str | None = None):
        self.folder, self.count, self.storage = folder, count, storage
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.codes: dict[int, int] = {}
        self.falls: dict[int, int] = dict.fromkeys(range(count), 0)
        self.notes: list[str] = []

    def start(self) -> None:
        for slot in range(self.count):
            self._start(slot)

    def _start(self, slot: int) -> None:
        logs = self.folder / "workers"
        logs.mkdir(exist_ok=True)
        with (logs / f"{slot}.log").open("ab") as log:
            self.processes[slot] = subprocess.Popen(
                [sys.executable, *_safe_path(), "-m", "dlcli.sweep.worker", str(self.folder)],
                env=self._environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C of the terminal reaches it through this process, once
                preexec_fn=dying_with(os.getpid()),
            )

    def _environment(self, slot: int) -> dict[str, str]:
        found = dict(os.environ) | {"DLCLI_SLOT": str(slot)}
        found.setdefault("OMP_NUM_THREADS", str(threads_each(self.count)))
        if gpus := visible_gpus():
            found["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        if self.storage:
            found[VARIABLE] = self.storage
        return found

    def watch(self, *, has_news: bool, stopping: bool) -> bool:
        """Start again what has died; whether any is at work. has_news: of a trial, since the last call."""
        if has_news:
            self.falls = dict.fromkeys(self.falls, 0)
        for slot, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self.processes[slot]
            self.codes[slot] = code
            if stopping or code == 0 or code in STOPPED:
                continue
            if code == MORE:
                self._start(slot)
            elif code < 0 or code not in range(2, 8):  # killed, or a fault of its own: its trial is taken up again
                self._fall(slot, code)
        return bool(self.processes)

    def _fall(self, slot: int, code: int) -> None:
        self.falls[slot] += 1
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with {code}"
        goes_on = self.falls[slot] < MOST_FALLS
        rest = "another takes its trial up" if goes_on else f"{MOST_FALLS} times in a row; it is not started again"
        self.notes.append(f"worker {slot} {how}; {rest}")
        if goes_on:
            self._start(slot)

    def stop(self, number: int) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def fault(self) -> EnvironmentFault | None:
        """What a worker that could not go on has said, once none is left."""
        for slot, code in self.codes.items():
            if code in STOPPED or code in (0, MORE):
                continue
            said = self._last_words(slot)
            return EnvironmentFault(f"worker {slot} ended with {code}: {said}", hint=f"See {self._log(slot)}")
        return None

    def _log(self, slot: int) -> Path:
        return self.folder / "workers" / f"{slot}.log"

    def _last_words(self, slot: int) -> str:
        try:
            lines = self._log(slot).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "its log is gone"
        errors = [line for line in lines if line.startswith("error:")] or [line for line in lines if line.strip()]
        return errors[-1].removeprefix("error: ") if errors else "it said nothing"


def _safe_path() -> list[str]:
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]  # as this process was: with the folder, or without


def facts(workers: int) -> dict[str, Any]:
    """For the header: what each worker has."""
    gpus = visible_gpus()
    return {"workers": workers, "devices": gpus or ["cpu"], "threads": threads_each(workers)}
