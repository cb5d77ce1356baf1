"""Who works on a trial, and whether they still live.

On one machine the process table says so, at once. A worker elsewhere is dead when its heartbeat, a number that grows,
has stood still for so long by the clock of who looks: clocks of two machines are never compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from dlcli.runs.disk import read_json, write_atomically

BEAT_S = 5.0


def this_worker(**more: Any) -> dict[str, Any]:
    """A name for this process that no other ever had: machine, start of the machine, process, its start."""
    return {
        "id": uuid4().hex[:12],
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "born": birth(os.getpid()),
        "oom_kills": oom_kills(),
        **more,
    }


def is_here(worker: Mapping[str, Any]) -> bool:
    """Whether it was started on this machine since it was switched on, where its process can be looked up."""
    return worker.get("machine") == _machine()


def is_alive_here(worker: Mapping[str, Any]) -> bool:
    born = worker.get("born")
    return born is not None and birth(worker.get("pid")) == born


def birth(pid: object) -> str | None:
    """When a process was started, in ticks since the machine was; None for one that is gone or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if os.path.isdir("/proc/self") else _alive(pid)
    return None if fields[0] in "ZX" else fields[19]


def _alive(pid: object) -> str | None:
    """On a system without /proc."""
    try:
        os.kill(int(str(pid)), 0)
        return "alive"
    except (OSError, ValueError):
        return None


def _machine() -> str:
    """Name, start and process table of this machine: two containers may share the first."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        try:
            parts.append(Path(path).read_text().strip())
        except OSError:
            continue
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return "/".join(parts)


def oom_kills() -> int:
    """How many processes the system has killed for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
        return 0


class Beat:
    """Tells in a thread of its own, every BEAT_S, that this process lives. tell: (worker id, number)."""

    def __init__(self, worker_id: str, tell: Callable[[str, int], None]):
        self._worker_id, self._tell = worker_id, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True, name="heartbeat")

    def __enter__(self) -> Beat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=BEAT_S)

    def _go(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self._tell(self._worker_id, number)
            except Exception as error:  # the next one may get through; a worker that cannot tell counts as dead
                print(f"heartbeat: {type(error).__name__}: {error}", flush=True)
            if self._stop.wait(BEAT_S):
                return


class Watch:
    """Remembers when each heartbeat was last seen to grow. read: worker id -> its number, None when there is none."""

    def __init__(self, read: Callable[[str], int | None], grace_s: float):
        self._read, self.grace_s = read, grace_s
        self._seen: dict[str, tuple[int | None, float]] = {}

    def is_alive(self, worker: Mapping[str, Any]) -> bool:
        if is_here(worker):
            return is_alive_here(worker)
        worker_id, now = str(worker.get("id")), time.monotonic()
        number = self._read(worker_id)
        if worker_id not in self._seen or self._seen[worker_id][0] != number:
            self._seen[worker_id] = (number, now)
        return now - self._seen[worker_id][1] < self.grace_s


def write_beat(sweep: Path, worker_id: str, number: int) -> None:
    """For machines that share the folder."""
    (sweep / "workers").mkdir(exist_ok=True)
    write_atomically(_beat_file(sweep, worker_id), b'{"beat": %d}\n' % number)


def read_beat(sweep: Path, worker_id: str) -> int | None:
    number = (read_json(_beat_file(sweep, worker_id)) or {}).get("beat")
    return number if isinstance(number, int) else None


def _beat_file(sweep: Path, worker_id: str) -> Path:
    return sweep / "workers" / f"{worker_id}.beat"
