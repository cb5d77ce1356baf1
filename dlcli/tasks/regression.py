"""Regression: one number per example, such as a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.metrics.statistics import Sums
from dlcli.tasks.task import Task, Values

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regression(Task):
    """Mean squared error, mean absolute error, or Huber's loss (1964), which changes from the one to the other at 1.

    A batch has `inputs`, the model's arguments, `targets` (B,) float, standardised, and `unit`, the size of 1 of them
    in the unit of the data; the model gives (B, 1). The loss is of standardised numbers; rmse and mae are in the unit
    of the data.
    """

    def __init__(self, model: nn.Module, *, loss: str = "mse"):
        super().__init__()
        self.model = model
        self.distance = LOSSES[loss]

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        targets_B = batch.targets  # first, so that data without targets raise the error
        loss = self.distance(self.predict(*batch.inputs), targets_B)
        return loss, {"loss": loss.detach()}

    def predict(self, *inputs: Tensor) -> Tensor:
        """The predictions (B,) float32, standardised like the targets."""
        numbers_B1 = self.model(*inputs)
        assert numbers_B1.shape[1:] == (1,), f"gives {tuple(numbers_B1.shape)}, not (B, 1)"
        return numbers_B1[:, 0].float()

    def statistics(self, source: Iterable[Any]) -> Sums:
        """r2 is 1 - SSE / SST over the whole set, with the set's own mean: always answering this mean gives 0."""
        pairs = [(self.predict(*batch.inputs), batch.targets, batch.unit) for batch in source]
        predicted_N, target_N = (torch.cat([pair[i] for pair in pairs]).cpu().double() for i in (0, 1))
        error_N, centred_N = predicted_N - target_N, target_N - target_N.mean()
        parts = {
            "examples": torch.ones_like(error_N),
            "squared_errors": error_N.square(),
            "errors": error_N.abs(),
            "targets": centred_N,
            "squared_targets": centred_N.square(),
        }
        loss_N = self.distance(predicted_N, target_N, reduction="none")
        return Sums(parts, partial(fit, unit=pairs[0][2]), means={"loss": loss_N})


def fit(sums: Mapping[str, Tensor], *, unit: float) -> dict[str, float]:
    """r2, 1 at best, and the errors in the unit of the data. targets: minus a common number, which keeps their squares
    small; SST is the sum of their squares minus that of their mean.

    If all targets are the same, r2 is 1 without any error and else 0.
    """
    part = {name: total.item() for name, total in sums.items()}
    size, sse, squares = part["examples"], part["squared_errors"], part["squared_targets"]
    sst = squares - part["targets"] ** 2 / size
    is_same = sst <= 1e-12 * squares  # equal numbers differ by no more than rounding
    return {
        "r2": float(sse == 0) if is_same else 1 - sse / sst,
        "rmse": unit * sqrt(sse / size),
        "mae": unit * (part["errors"] / size),
    }
