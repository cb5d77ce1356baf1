"""Measures how a training spends its time, by the clock of its process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Times:
    """Counts the seconds of waiting for data, evaluations and checkpoints; the rest is the device's.

    A GPU works while the process goes on: loading that it hides costs nothing and is not counted.
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
        """Yield the same batches and count the time to get each as data."""
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
        """Return the seconds of start, data, device, evaluation, saving. training_s: first step to last."""
        rest = training_s - sum(self.seconds.values())
        seconds = self.seconds
        return {
            "start": start_s, "data": seconds["data"], "device": max(0.0, rest),
            "evaluation": seconds["evaluation"], "saving": seconds["saving"],
        }  # fmt: skip


def close(batches: Iterator[Item]) -> None:
    """End an iterator's worker processes now: at the program's end they would wait for one another."""
    getattr(batches, "close", lambda: None)()
