"""A command in a fork of a process that has imported torch is the program: the same bits, words and exit codes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import program
import pytest
from program import QUICK, dlcli, environment, events_of, real_dlcli


def weights(run: Callable[..., Any], folder: Path, *words: str, **env: str) -> str:
    folder.mkdir()
    done = run("train", *QUICK, *words, "--json", cwd=folder, **env)
    assert done.returncode == 0, done.stderr
    file = Path(events_of(done.stdout)[-1]["run"]) / "checkpoints" / "last" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_trains_the_same_bits(tmp_path: Path, threads: int) -> None:
    words = [f"runtime.threads={threads}"]
    assert len({weights(run, tmp_path / run.__name__, *words) for run in (dlcli, real_dlcli)}) == 1


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["train", "digits", "zzz=1"], ["train", "zzz", "--json"], ["runs", "ls"],
              ["nonsense"], [], ["config", "show", "digits"]], ids=" ".join
)  # fmt: skip
def test_a_fork_answers_the_same(tmp_path: Path, words: list[str]) -> None:
    fork, real = (run(*words, cwd=tmp_path) for run in (dlcli, real_dlcli))
    assert (fork.returncode, fork.stdout, fork.stderr) == (real.returncode, real.stdout, real.stderr)


def test_a_command_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = dict(os.environ)
    first = dlcli("train", *QUICK, "--json", cwd=tmp_path / "a", DLCLI_OUTPUTS="elsewhere")
    second = dlcli("train", *QUICK, "--json", cwd=tmp_path)
    assert [Path(events_of(done.stdout)[-1]["run"]).parents[1].name for done in (first, second)] == [
        "elsewhere", "outputs"
    ]  # fmt: skip
    assert dict(os.environ) == before


def test_what_is_read_at_the_start_of_a_process_asks_for_a_new_one(tmp_path: Path) -> None:
    dlcli("--version", cwd=tmp_path)
    server = program._warm
    assert server is not None and server.can_run(environment(DLCLI_OUTPUTS="x", TMPDIR="/tmp", COLUMNS="90"))
    for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS"):
        assert not server.can_run(environment(**{name: "3"})), name


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        dlcli("train", *QUICK, "trainer.epochs=100000", cwd=tmp_path, timeout=2)
    assert time.monotonic() - began < 60
