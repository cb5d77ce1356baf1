"""The program as a subprocess, as a user would run it, and a small run of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# digits, few epochs, one thread, no tracker: a run of about three seconds
QUICK = ("digits", "tracker=none", "trainer.epochs=2", "runtime.threads=1", "runtime.device=cpu")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: ours without what would change its answers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "DLCLI_OUT", "DLCLI_DEBUG"))}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | more


def dlcli(
    *words: str, cwd: Path, timeout: float = 240, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `dlcli WORDS` as a user would, without a terminal."""
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
