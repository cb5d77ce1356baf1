"""Reports when frozen parameter groups (`from_epoch`) begin to train: before the training, and when it happens.

The loop freezes and unfreezes (dlcli.optimizers.freezing); this only reports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dlcli.optimizers.freezing import trainable_from
from dlcli.runs.events import Recorder


class Unfreezing:
    """patterns: the config's parameter_groups, of which optimizers know the parameters but not the names."""

    def __init__(
        self,
        patterns: Mapping[str, Mapping[str, Any]],
        optimizers: Iterable[torch.optim.Optimizer],
        steps_per_epoch: int,
    ):
        self.trainable = trainable_from(group for optimizer in optimizers for group in optimizer.param_groups)
        self.steps_per_epoch = steps_per_epoch
        self.names = {
            step: [name for name, p in patterns.items() if p.get("from_epoch") == self._epoch(step)]
            for step in self.trainable
        }

    def facts(self, step: int) -> dict[str, Any]:
        """How many parameters are trained after so many steps, and how many from later epochs on."""
        now = max(at for at in self.trainable if at <= step)
        return {"trainable": self.trainable[now], "trainable_later": [self._woken(at) for at in self._later(step)]}

    def steps_until_due(self, step: int) -> list[int]:
        """Steps until each group wakes that still rests."""
        return [at - step for at in self._later(step)]

    def tell(self, step: int, recorder: Recorder) -> None:
        """An event, where groups are trained from the next step on that were not before. Called before that step, and
        after the checkpoint of this one: a resumed run says it once.
        """
        if step and step in self.trainable:
            recorder.emit("unfrozen", step=step, **self._woken(step))

    def _later(self, step: int) -> list[int]:
        return [at for at in self.trainable if at > step]

    def _woken(self, step: int) -> dict[str, Any]:
        return {"epoch": self._epoch(step), "groups": self.names[step], "trainable": self.trainable[step]}

    def _epoch(self, step: int) -> int:
        return step // self.steps_per_epoch + 1
