"""Workers on this machine: a device each, started again when they die, given up when they cannot even begin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from program import environment
from sweeping import SMALL, SPACE, sweep

from dlcli.sweep.workers import local
from dlcli.sweep.workers.local import Workers, default_workers, threads_each, visible_gpus


def test_each_worker_is_given_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]
    assert default_workers() == 2
    workers = Workers(tmp_path, 4)
    given = [workers._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert given == ["2", "5", "2", "5"]


@pytest.mark.parametrize("asked", ["", "-1"])
def test_hidden_gpus_are_none(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible_gpus() == []


def test_without_a_gpu_cores_and_memory_say_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(local, "usable_cores", lambda: 16)
    monkeypatch.setattr(local, "_memory_gb", lambda: 64)
    assert default_workers() == local.MOST_WORKERS
    monkeypatch.setattr(local, "_memory_gb", lambda: 3)
    assert default_workers() == 1
    assert threads_each(4) == 4 and threads_each(32) == 1


def test_threads_are_shared_among_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found: dict[str, Any] = Workers(tmp_path, os.cpu_count() or 1)._environment(0)
    assert found["OMP_NUM_THREADS"] == "1"


def test_workers_that_cannot_even_begin_are_given_up(tmp_path: Path) -> None:
    """A broken installation of torch: the process ends before it has a trial."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "optuna.py").write_text("raise RuntimeError('optuna is broken here')\n")
    paths = f"{tmp_path / 'broken'}:{environment()['PYTHONPATH']}"
    done = sweep(tmp_path, *SMALL, *SPACE, "--trials", "2", "--workers", "1", "--name", "s", PYTHONPATH=paths)
    assert done.returncode == 5, (done.returncode, done.stderr)
    assert "optuna is broken here" in done.stderr and "workers/0.log" in done.stderr
    assert "Traceback" not in done.stderr
