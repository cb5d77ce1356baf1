"""A worker as a cluster starts it: the usual process, that takes the cluster's signals for SIGTERM, and says how it
ended in a file, since a cluster's own account of that may be late, or missing.

    python -m dlcli.sweep.workers.job SWEEP_FOLDER END_FILE
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def become(folder: str, end: str, options: tuple[str, ...] = ()) -> None:
    """What submitit calls in the job: its process turns into the worker's, and gets each signal once."""
    os.execv(sys.executable, [sys.executable, *options, "-m", "dlcli.sweep.workers.job", folder, end])


def main(folder: str, end: str) -> int:
    os.environ.pop("SLURM_PROCID", None)  # a worker is a rank of nothing
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # what schedulers send before the time is over
        signal.signal(number, _as_sigterm)
    from dlcli.sweep.workers import worker
    from dlcli.sweep.workers.slots import MORE

    code = worker.main(folder)
    if code == MORE:
        os.execv(sys.executable, sys.orig_argv)
    write_end(Path(end), code)
    return code


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def write_end(path: Path, code: int) -> None:
    from dlcli.runs.disk import write_atomically

    write_atomically(path, f"{code}\n".encode())


def read_end(path: Path) -> int | None:
    """The exit code; None while it is at work, and of one that was killed."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
