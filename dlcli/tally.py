"""The values of many steps, read at once: a read waits for the device; at every step it costs a tiny network 4 %."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch

from dlcli import loop
from dlcli.state import Progress
from dlcli.tasks.task import Answers

MOST_PENDING_ANSWERS = 4_000_000  # logits, 16 MB
MOST_PENDING = 100  # steps


class Tally:
    """Steps whose values wait on the device. answers_per_step: logits that a step keeps for its accuracy."""

    def __init__(self, answers_per_step: int):
        self.pending: list[loop.StepDone] = []
        self.most_pending = max(1, min(MOST_PENDING, MOST_PENDING_ANSWERS // answers_per_step))
        self.last: loop.StepDone | None = None

    def fold(self, progress: Progress) -> None:
        """Add the pending values to the epoch's sums, one after another in Python's float64.

        However the steps are grouped, the sums are the same to the last bit: counts are whole numbers, and means are
        added in the order of their steps.
        """
        pending, sums = self.pending, progress.sums
        counts = [done.num_examples for done in pending]
        progress.examples += sum(counts)
        for name in pending[0].values if pending else ():
            values: list[Any] = [done.values[name] for done in pending]
            total = sums.get(name, 0.0)
            if isinstance(values[0], Answers):
                total += loop.join(values).is_right().sum().item()
            else:
                for mean, count in zip(torch.stack(values).tolist(), counts, strict=True):
                    total += (
                        mean * count if isfinite(mean) else 0.0
                    )  # a gradient that overflowed fp16: no step was made
            sums[name] = total
        pending.clear()

    def last_values(self) -> dict[str, float]:
        """Of the last step."""
        return {name: loop.mean(value) for name, value in self.last.values.items()} if self.last else {}

    def shown_loss(self) -> float:
        """The loss that a progress bar shows; of several phases, their sum."""
        values = self.pending[-1].values
        parts = ["loss"] if "loss" in values else [name for name in values if name.startswith("loss/")]
        return sum(loop.mean(values[name]) for name in parts)
