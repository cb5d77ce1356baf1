"""Reads the values of many steps at once: each read waits for the device, which costs a tiny network 4 % per step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from math import isfinite
from typing import Any

import torch

from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.tasks.task import Answers
from dlcli.training import loop
from dlcli.training.state import Progress

MOST_PENDING_ANSWERS = 4_000_000  # logits, 16 MB
MOST_PENDING = 100  # steps


def answers_per_step(tree: Mapping[str, Any]) -> int:
    """Count the logits that a step keeps for its accuracy, if the task has one."""
    settings = tree["dataset"]
    return settings["batch_size"] * tree["trainer"]["accumulate_grad_batches"] * (settings.get("num_classes") or 1)


class MetricBuffer:
    """Holds the values of steps on the device. answers_per_step: logits that a step keeps for its accuracy."""

    def __init__(self, answers_per_step: int, ranks: SingleProcess | Ranks):
        self.pending: list[loop.StepDone] = []
        self.most_pending = max(1, min(MOST_PENDING, MOST_PENDING_ANSWERS // answers_per_step))
        self.last: loop.StepDone | None = None
        self.ranks = ranks

    def fold(self, progress: Progress) -> None:
        """Add the pending values of all ranks to the epoch's sums, one after another in Python's float64.

        The grouping of the steps does not change a bit of the sums: counts are whole numbers, and means are added in
        the order of their steps.
        """
        counts = [done.weight for done in self.pending]
        own = {name: self._totals(name, counts) for name in (self.pending[0].values if self.pending else ())}
        weight, *pooled = self.ranks.all_reduce_data([sum(counts), *chain(*own.values())])
        progress.examples += int(weight)
        totals = iter(pooled)
        for name, parts in own.items():
            for total in islice(totals, len(parts)):
                progress.sums[name] = progress.sums.get(name, 0.0) + total
        self.pending.clear()

    def _totals(self, name: str, counts: list[int]) -> list[float]:
        """Sums over this rank's examples: one of right answers, or one of the mean of each pending step."""
        values: list[Any] = [done.values[name] for done in self.pending]
        if isinstance(values[0], Answers):
            return [loop.join(values).is_right().sum().item()]
        means = torch.stack(values).tolist()  # not finite: a gradient overflowed fp16, and there was no step
        return [mean * count if isfinite(mean) else 0.0 for mean, count in zip(means, counts, strict=True)]

    def last_values(self) -> dict[str, float]:
        """The values of the last step, over all ranks."""
        if self.last is None:
            return {}
        own = {name: loop.mean(value) for name, value in self.last.values.items()}
        if self.ranks.world_size == 1:
            return own
        *totals, count = self.ranks.all_reduce_data([*(m * self.last.weight for m in own.values()), self.last.weight])
        return {name: total / count for name, total in zip(own, totals, strict=True)}

    def shown_loss(self) -> float:
        """The loss that a progress bar shows; the sum if there are several phases."""
        values = self.pending[-1].values
        parts = ["loss"] if "loss" in values else [name for name in values if name.startswith("loss/")]
        return sum(loop.mean(values[name]) for name in parts)
