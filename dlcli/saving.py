"""The checkpoints of one run while it trains: written, pointed at, pruned, and told to the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dlcli import checkpoint
from dlcli.record import Recorder


class Snapshot(NamedTuple):
    """What a checkpoint is of: weights to use and the other tensors, by name, on the CPU; and the plain rest."""

    weights: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    body: Mapping[str, Any]


class Saver:
    """keep: newest checkpoints that stay. step: of the last one, -1 before there is one; last, best: folders."""

    def __init__(self, checkpoints: Path, recorder: Recorder, keep: int):
        self.checkpoints, self.recorder, self.keep = checkpoints, recorder, keep
        self.step = -1
        self.last: Path | None = None
        self.best: Path | None = None

    def write(self, step: int, snapshot: Snapshot | None, *, is_best: bool) -> None:
        """snapshot: None where this step is written already and has only turned out to be the best."""
        if snapshot is not None:
            self.last = checkpoint.save(self.checkpoints, step, *snapshot)
            self.step = step
        folder = self.last
        assert folder is not None
        if is_best:
            self.point_to_best(folder)
        checkpoint.point(self.checkpoints, "last", folder)
        checkpoint.prune(self.checkpoints, self.keep)
        path = f"{self.checkpoints.name}/{folder.name}"
        self.recorder.emit("checkpoint", step=step, path=path, best=is_best)

    def take_up(self, folder: Path, step: int, best_step: int | None) -> None:
        """Go on from a checkpoint, with `best` again where it was: a kill may have come before the link."""
        self.last, self.step = folder, step
        best = self.checkpoints / f"step-{best_step:08d}" if best_step is not None else None
        if best is not None and best.is_dir():
            self.point_to_best(best)

    def point_to_best(self, folder: Path) -> None:
        checkpoint.point(self.checkpoints, "best", folder)
        self.best = folder
