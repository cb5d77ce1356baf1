"""What the benchmarks measure with: CPU time of child processes, medians of paired ratios, tables."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class Cost(NamedTuple):
    """Of one finished child process and of the children that it waited for."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def environment(**more: str) -> dict[str, str]:
    """One thread, this repository's dlcli, byte code cached as it is for a user."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "PYTHONDONTWRITE"))}
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def cost_of(command: Sequence[str], *, stdout: IO[str] | int = subprocess.DEVNULL, **env: str) -> Cost:
    """Run to the end; raises CalledProcessError, with stderr, when it fails."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=stdout, stderr=errors, env=environment(**env))
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise subprocess.CalledProcessError(child.returncode, list(command), stderr=errors.read())
    per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return Cost(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / per_mb)


def in_turn(rounds: int, *sides: Any) -> list[tuple[Any, ...]]:
    """Each side once per round; a first round warms up and is not counted."""
    return [tuple(side() for side in sides) for _ in range(rounds + 1)][1:]


class Failed(Exception):
    """A child ended without a result; the message is the last line of what it printed."""


def result_of(module: str, *words: str, **env: str) -> Any:
    """The JSON that `python -m MODULE WORDS` writes to the file $RESULT, on a terminal of its own. Raises Failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=folder,
            env=environment(RESULT=str(file), TERM="xterm-256color", COLUMNS="120", **env),
        )  # fmt: skip
        os.close(slave)
        told = drain(master)
        if child.wait() or not file.exists():
            lines = [line for line in told.splitlines() if line.strip()]
            raise Failed(lines[-1].strip() if lines else f"exit code {child.returncode}")
        return json.loads(file.read_text())


def drain(master: int) -> str:
    """What comes out of a terminal until its last writer is gone: its end."""
    told = b""
    with contextlib.suppress(OSError):  # Linux says EIO at the end
        while chunk := os.read(master, 1 << 16):
            told = (told + chunk)[-20_000:]
    os.close(master)
    return told.decode(errors="replace")


def give_result(value: Any) -> None:
    """The child's side of `result_of`."""
    Path(os.environ["RESULT"]).write_text(json.dumps(value))


def mnist_root() -> Path:
    """A folder with MNIST as torchvision wants it: decompressed, in MNIST/raw. Made once, beside dlcli's cache."""
    import gzip
    import shutil

    from dlcli.datasets.mnist import MNIST, NAMES, find_files
    from dlcli.datasets.storage.roots import cache_folder, data_roots

    found = find_files(MNIST, data_roots(None))
    if found is None:
        raise SystemExit("this bench needs MNIST: DLCLI_DATA=FOLDER")
    root = cache_folder() / "bench"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if not (raw / name).exists():
            opened = gzip.open if found[name].suffix == ".gz" else open
            with opened(found[name], "rb") as packed, open(raw / f"{name}.part", "wb") as plain:
                shutil.copyfileobj(packed, plain)
            os.replace(raw / f"{name}.part", raw / name)
    return root


# --------------------------------------------------------------------------------------------------------------- tables


def spread(values: Sequence[float], digits: int = 3) -> str:
    """median (least to most)"""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
