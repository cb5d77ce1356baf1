"""The checkpoints of one run while it trains: written in a thread of their own, pointed at, pruned, told to the record.

Training waits for the snapshot only. Serialising, hashing and the disk happen beside it, one checkpoint at a time; each
is as atomic as if it were waited for, and a kill meanwhile costs that one checkpoint and no older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dlcli import checkpoint
from dlcli.record import Recorder


class Snapshot(NamedTuple):
    """What a checkpoint is of: weights to use and the other tensors, by name, on the CPU; and the plain rest.

    The tensors are copies: training goes on while they are written.
    """

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[Path] | None = None
        self._asked = (-1, False)

    def write(self, step: int, snapshot: Snapshot | None, *, is_best: bool) -> None:
        """Begin to write; `settle` first. snapshot: None where this step is written and turned out to be the best."""
        assert self._pending is None
        self._asked = (step, is_best)
        self._pending = self._thread.submit(self._write, step, snapshot, is_best)

    def settle(self, *, wait: bool = True) -> bool:
        """Whether a checkpoint has become whole since the last call. Raises what went wrong with it, once."""
        if self._pending is None or not (wait or self._pending.done()):
            return False
        pending, self._pending = self._pending, None
        self.last = folder = pending.result()
        self.step, is_best = self._asked
        self.best = folder if is_best else self.best
        path = f"{self.checkpoints.name}/{folder.name}"
        self.recorder.emit("checkpoint", step=self.step, path=path, best=is_best)
        return True

    def _write(self, step: int, snapshot: Snapshot | None, is_best: bool) -> Path:
        folder = self.last if snapshot is None else checkpoint.save(self.checkpoints, step, *snapshot)
        assert folder is not None
        if is_best:
            checkpoint.point(self.checkpoints, "best", folder)
        checkpoint.point(self.checkpoints, "last", folder)
        checkpoint.prune(self.checkpoints, self.keep)
        return folder

    def take_up(self, folder: Path, step: int, best_step: int | None) -> None:
        """Go on from a checkpoint, with `best` again where it was: a kill may have come before the link."""
        self.last, self.step = folder, step
        best = self.checkpoints / f"step-{best_step:08d}" if best_step is not None else None
        if best is not None and best.is_dir():
            checkpoint.point(self.checkpoints, "best", best)
            self.best = best

    def close(self) -> None:
        """End the thread, once it has written what it was asked to."""
        self._thread.shutdown()


class Bystander(Saver):
    """On the other ranks: everything is written by rank 0, and found where it writes."""

    def write(self, step: int, snapshot: Snapshot | None, *, is_best: bool) -> None:
        folder = self.checkpoints / f"step-{step:08d}"
        self.step, self.last = step, folder
        self.best = folder if is_best else self.best

    def settle(self, *, wait: bool = True) -> bool:
        return True

    def take_up(self, folder: Path, step: int, best_step: int | None) -> None:
        self.last, self.step = folder, step
        best = self.checkpoints / f"step-{best_step:08d}" if best_step is not None else None
        self.best = best if best is not None and best.is_dir() else None
