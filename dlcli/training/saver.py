"""Saves the checkpoints of a run while it trains: writes them in a thread, sets the links, prunes, records them.

Training waits for the snapshot only. Serialising, hashing and the disk happen beside it, one checkpoint at a time; each
is as atomic as if it were waited for, and a kill meanwhile costs that one checkpoint and no older one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from torch import Tensor

from dlcli.runs import checkpoint
from dlcli.runs.events import Recorder


class Snapshot(NamedTuple):
    """The content of a checkpoint: weights to use and the other tensors, by name, on the CPU; and the plain data.

    The tensors are copies: training goes on while they are written.
    """

    weights: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    body: Mapping[str, Any]


class Item(NamedTuple):
    """A checkpoint to write; without a snapshot it is written already, and turned out to be the best."""

    step: int
    snapshot: Snapshot | None
    is_best: bool


class Saver:
    """Saves checkpoints. keep: newest ones to keep. step: of the last one, -1 before there is one; last, best: folders.

    gap_s: the least time between two. Earlier ones are not written, and the best is held in memory: a small network
    would spend its time on the disk. A kill costs only the training since the last checkpoint on disk.
    """

    def __init__(self, checkpoints: Path, recorder: Recorder, keep: int, gap_s: float = 0.0):
        self.checkpoints, self.recorder, self.keep, self.gap_s = checkpoints, recorder, keep, gap_s
        self.step = -1
        self.last: Path | None = None
        self.best: Path | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._whole: list[Item] = []  # written but not yet recorded
        self._held: list[Item] = []
        self._next_s = monotonic() + gap_s

    def write(self, step: int, take: Callable[[], Snapshot] | None, *, is_best: bool, now: bool = True) -> None:
        """Begin to write; `settle` first. take: makes the snapshot, None where this step is written and turned out to
        be the best; now: even if it is too early.
        """
        assert self._pending is None
        is_early = not now and monotonic() < self._next_s
        if is_early and not is_best:
            return
        held = [] if is_best else self._held  # the best before anything later: a checkpoint tells which it is
        is_held = bool(held) and held[0].step == step
        items = held if is_held else [*held, Item(step, take() if take else None, is_best)]
        if is_early:
            self._held = items
        else:
            self._submit(items)

    def flush(self) -> bool:
        """Begin to write what is held; `settle` first. Returns whether there was something."""
        has_held = bool(self._held)
        if has_held:
            self._submit(self._held)
        return has_held

    def finish(self) -> None:
        """Finish what was begun and write what is held. Raises any error in it."""
        self.settle()
        if self.flush():
            self.settle()

    def _submit(self, items: list[Item]) -> None:
        self._held = []
        self._next_s = monotonic() + self.gap_s
        self._pending = self._thread.submit(self._write, items)

    def settle(self, *, wait: bool = True) -> bool:
        """Return whether a checkpoint was completed since the last call. Raises its error, once."""
        if self._pending is None or not (wait or self._pending.done()):
            return False
        pending, self._pending = self._pending, None
        try:
            pending.result()
        finally:  # of two the first may be whole
            while self._whole:
                self._take_over(*self._whole.pop(0))
        return True

    def _take_over(self, step: int, _: Snapshot | None, is_best: bool) -> None:
        self.step, self.last = step, self._folder(step)
        self.best = self.last if is_best else self.best
        path = f"{self.checkpoints.name}/{self.last.name}"
        self.recorder.emit("checkpoint", step=step, path=path, best=is_best)

    def _write(self, items: list[Item]) -> None:
        for item in items:
            step, snapshot, is_best = item
            if snapshot is not None:
                checkpoint.save(self.checkpoints, step, *snapshot)
            if is_best:
                checkpoint.point(self.checkpoints, "best", self._folder(step))
            checkpoint.point(self.checkpoints, "last", self._folder(step))
            self._whole.append(item)
        checkpoint.prune(self.checkpoints, self.keep)

    def _folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def take_up(self, folder: Path, step: int, best_step: int | None) -> None:
        """Continue from a checkpoint and restore the link `best`: a kill may have come before the link."""
        self.last, self.step = folder, step
        best = None if best_step is None else self._folder(best_step)
        if best is not None and best.is_dir():
            checkpoint.point(self.checkpoints, "best", best)
            self.best = best

    def close(self) -> None:
        """End the thread, once it has written what it was asked to."""
        self._thread.shutdown()


class Bystander(Saver):
    """The saver of the other ranks: rank 0 writes everything, and the others find it there."""

    def write(self, step: int, take: Callable[[], Snapshot] | None, *, is_best: bool, now: bool = True) -> None:
        if take:
            take()  # all ranks gather for it
        self.step, self.last = step, self._folder(step)
        self.best = self.last if is_best else self.best

    def settle(self, *, wait: bool = True) -> bool:
        return True

    def take_up(self, folder: Path, step: int, best_step: int | None) -> None:
        self.last, self.step = folder, step
        best = None if best_step is None else self._folder(best_step)
        self.best = best if best is not None and best.is_dir() else None
