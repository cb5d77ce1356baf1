"""Where the time of a training went, by the clock of the process that makes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Times:
    """Seconds spent waiting for data, for evaluations and for checkpoints; what is left went to the device.

    A GPU works while the process goes on: what a wait for the next batch hides costs nothing, and counts as nothing.
    """

    def __init__(self) -> None:
        self.seconds = {"data": 0.0, "evaluation": 0.0, "saving": 0.0}

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began

    def waiting_for(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; the time to get each counts as data."""
        seconds, now = self.seconds, time.perf_counter
        try:
            while True:
                began = now()
                batch = next(batches)
                seconds["data"] += now() - began
                yield batch
        except StopIteration:
            return
        finally:
            close(batches)

    def summary(self, *, start_s: float, training_s: float) -> dict[str, float]:
        """Seconds by name: start, data, device, evaluation, saving. training_s: from the first step to the last."""
        rest = training_s - sum(self.seconds.values())
        seconds = self.seconds
        return {
            "start": start_s, "data": seconds["data"], "device": max(0.0, rest),
            "evaluation": seconds["evaluation"], "saving": seconds["saving"],
        }  # fmt: skip


def close(batches: Iterator[Item]) -> None:
    """End the processes behind an iterator now: at the program's end they would wait for one another."""
    getattr(batches, "close", lambda: None)()
