"""Saving and loading 25 million parameters with Adam's state, 300 MB, beside torch.save with fsync and torch.load.

dlcli's save is atomic, hashed and on the disk when it ends; its load verifies every bit. A run saves in a thread beside
the training, which waits for the snapshot only: its time has a row of its own.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import in_turn, spread, table

LAYERS, WIDTH = 24, 1020  # 25.0 M parameters
ROUNDS = 5


def run() -> str:
    """Save and load of 300 MB beside torch.save and torch.load."""
    import torch

    from dlcli.runs import checkpoint

    torch.set_num_threads(1)
    tensors = {f"model.{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(LAYERS)}
    adam = {f"optimizer/model/{name}/{key}": torch.randn(WIDTH, WIDTH) for name in tensors for key in ("m", "v")}
    with tempfile.TemporaryDirectory(dir=Path.cwd() if shutil.disk_usage(".").free > 4e9 else None) as name:
        folder = Path(name)

        def snapshot() -> list[Any]:
            return [tensor.detach().to("cpu", copy=True) for tensor in (*tensors.values(), *adam.values())]

        def save() -> None:
            checkpoint.save(folder, 1, tensors, adam, body())

        def torch_save() -> None:
            with open(folder / "state.pt", "wb") as file:
                torch.save({"model": tensors, "optimizer": adam}, file)
                file.flush()
                os.fsync(file.fileno())

        def load() -> None:
            touch(vars(checkpoint.read(folder / "step-00000001")))

        def torch_load() -> None:
            touch(torch.load(folder / "state.pt", weights_only=True))

        sides = {
            "dlcli.runs.checkpoint.save: sha256, fsync, rename": save,
            "torch.save, fsync": torch_save,
            "dlcli: the snapshot that training waits for": snapshot,
            "dlcli.runs.checkpoint.read: sha256, finite": load,
            "torch.load(weights_only=True)": torch_load,
        }
        rounds = in_turn(ROUNDS, *(lambda side=side: timed(side) for side in sides.values()))
    columns = list(zip(*rounds, strict=True))
    rivals = (columns[1], None, columns[1], columns[4], None)
    rows = [row(name, column, rival) for name, column, rival in zip(sides, columns, rivals, strict=True)]
    megabytes = 3 * 4 * LAYERS * WIDTH**2 / 1e6
    told = f"{ROUNDS} paired rounds of {megabytes:.0f} MB; files in the page cache when read; every page touched."
    return f"{told}\n\n" + table(("", "wall s", "CPU s", "against torch's, wall", "CPU"), rows)


def timed(side: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    gc.collect()
    wall, cpu = time.monotonic(), time.process_time()
    side()
    return time.monotonic() - wall, time.process_time() - cpu


def touch(value: Any) -> None:
    """Every page of every tensor within."""
    import torch

    if isinstance(value, dict):
        for inner in value.values():
            touch(inner)
    elif isinstance(value, torch.Tensor):
        value.flatten()[::1024].sum()


def row(name: str, column: Any, rival: Any) -> tuple[str, ...]:
    cells = [f"{statistics.median(side):.2f}" for side in zip(*column, strict=True)]
    if rival is None:
        return (name, *cells, "", "")
    pairs = [(a / c, b / d) for (a, b), (c, d) in zip(column, rival, strict=True)]
    return (name, *cells, *(spread(side, 2) for side in zip(*pairs, strict=True)))


def body() -> dict[str, Any]:
    """The plain part of a manifest: nothing of it is large."""
    return {
        "dlcli": "", "run": "bench", "experiment": "bench", "config": {}, "teacher": None, "classes": [],
        "majority": None, "data": {}, "environment": {}, "state": {},
    }  # fmt: skip
