"""Regression: one number per example, such as a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.task import Task, Values

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regression(Task):
    """Mean squared error, mean absolute error, or Huber's loss (1964), which turns from the one to the other at 1.

    A batch has `inputs`, what the model is called with, `targets` (B,) float, standardised, and `unit`, what 1 of them
    is in the unit of the data; the model gives (B, 1). The loss is of standardised numbers, rmse and mae are in the
    unit of the data.
    """

    def __init__(self, model: nn.Module, *, loss: str = "mse"):
        super().__init__()
        self.model = model
        self.distance = LOSSES[loss]

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        targets_B = batch.targets  # first: data without any say so
        loss = self.distance(self.predict(*batch.inputs), targets_B)
        return loss, {"loss": loss.detach()}

    def predict(self, *inputs: Tensor) -> Tensor:
        """(B,) float32, standardised as the targets are."""
        numbers_B1 = self.model(*inputs)
        assert numbers_B1.shape[1:] == (1,), f"gives {tuple(numbers_B1.shape)}, not (B, 1)"
        return numbers_B1[:, 0].float()

    def evaluate(self, source: Iterable[Any], **_: Any) -> dict[str, float]:
        """r2 is 1 - SSE / SST over the whole set, with the set's own mean: 0 for who always answers this mean."""
        pairs = [(self.predict(*batch.inputs), batch.targets, batch.unit) for batch in source]
        unit = pairs[0][2]
        predicted_N, target_N = (torch.cat([pair[i] for pair in pairs]).cpu().double() for i in (0, 1))
        error_N = predicted_N - target_N
        return {
            "r2": explained(error_N, target_N),
            "rmse": unit * error_N.square().mean().sqrt().item(),
            "mae": unit * error_N.abs().mean().item(),
            "loss": self.distance(predicted_N, target_N).item(),
        }


def explained(error_N: Tensor, target_N: Tensor) -> float:
    """R squared, 1 at best. Of targets that are all the same it is 1 for no error at all and else 0."""
    sse = error_N.square().sum().item()
    sst = (target_N - target_N.mean()).square().sum().item()
    if sst == 0:
        return float(sse == 0)
    return 1 - sse / sst
