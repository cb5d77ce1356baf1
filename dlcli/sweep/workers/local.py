"""Workers on this machine: a process each, with a device of its own, watched over and started again when they die."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlcli.runtime.launch import dying_with, usable_cores
from dlcli.sweep.ledger.address import VARIABLE
from dlcli.sweep.workers.slots import Slots

MOST_WORKERS, GB_EACH = 4, 2  # that nobody asked for by number


def visible_gpus() -> list[str]:
    """The GPUs that workers may be given, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name for name in asked.split(",") if name and name != "-1"]
    with suppress(OSError):
        return [str(i) for i in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    return []


def default_workers() -> int:
    """One per GPU; without, as many as cores and memory hold, for small networks gain more from neighbours than from
    threads.
    """
    if gpus := visible_gpus():
        return len(gpus)
    return max(1, min(MOST_WORKERS, usable_cores(), _memory_gb() // GB_EACH))


def _memory_gb() -> int:
    """The memory of this machine; a guess if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    except (ValueError, OSError):
        return 2 * GB_EACH


def threads_each(workers: int) -> int:
    return max(1, usable_cores() // workers)


class Workers(Slots):
    """storage: the full address of a shared ledger."""

    def __init__(self, folder: Path, count: int, storage: str | None = None):
        super().__init__(folder, count)
        self.storage = storage
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def begin(self, slot: int) -> None:
        self.log(slot).parent.mkdir(exist_ok=True)
        with self.log(slot).open("ab") as log:
            self.processes[slot] = subprocess.Popen(
                [sys.executable, *safe_path(), "-m", "dlcli.sweep.workers.worker", str(self.folder)],
                env=self._environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C of the terminal reaches it through this process, once
                preexec_fn=dying_with(os.getpid()),
            )

    def poll(self, slot: int) -> int | None:
        return self.processes[slot].poll()

    def log(self, slot: int) -> Path:
        return self.folder / "workers" / f"{slot}.log"

    def _environment(self, slot: int) -> dict[str, str]:
        found = dict(os.environ) | {"DLCLI_SLOT": str(slot)}
        found.setdefault("OMP_NUM_THREADS", str(threads_each(self.count)))
        if gpus := visible_gpus():
            found["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        if self.storage:
            found[VARIABLE] = self.storage
        return found

    def stop(self, number: int) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def facts(self) -> dict[str, Any]:
        return {"workers": self.count, "devices": visible_gpus() or ["cpu"], "threads": threads_each(self.count)}


def safe_path() -> list[str]:
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]  # as this process was: with the folder, or without
