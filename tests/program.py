"""The program as a subprocess, as a user would run it, and a small run of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from warm import Server

_warm: Server | None = None
REPOSITORY = Path(__file__).resolve().parents[1]
# digits, few epochs, one thread, no tracker: a run of about three seconds
QUICK = ("digits", "tracker=none", "trainer.epochs=2", "runtime.threads=1", "runtime.device=cpu")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: ours without what would change its answers."""
    foreign = ("WANDB_", "DLCLI_OUT", "DLCLI_DEBUG", "KMP_", "TORCHINDUCTOR_")  # the last two: torch's import sets them
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | more


def dlcli(
    *words: str, cwd: Path, timeout: float = 240, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `dlcli WORDS` as a user would, without a terminal: in a fork of a process that has imported torch (warm.py).

    Where its environment differs in what is read at the start of a process, as `real_dlcli` does.
    """
    global _warm
    wanted = environment(**env)
    if "DLCLI_TESTS_REAL" not in wanted:
        _warm = _warm or Server(environment())
        if _warm.can_run(wanted):
            return _warm.run(words, cwd, wanted, stdin, timeout)
    return real_dlcli(*words, cwd=cwd, timeout=timeout, stdin=stdin, **env)


def real_dlcli(
    *words: str, cwd: Path, timeout: float = 240, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, where its start, its imports, signals or its exit are the point."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "dlcli", *words],
        cwd=cwd,
        env=environment(**env),
        input=None if stdin is None else stdin.decode("latin-1"),
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def train_quickly(folder: Path, *words: str) -> dict[str, Any]:
    """A short run; its last event."""
    done = dlcli("train", *QUICK, *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return events_of(done.stdout)[-1]
