"""Knowledge distillation (Hinton, Vinyals and Dean 2015, section 2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.classification import Classification
from dlcli.tasks.task import Answers, Values


class Distillation(Classification):
    """alpha * KL(teacher || student at temperature T) * T^2 + (1 - alpha) * cross-entropy with the labels.

    The teacher is frozen, receives no gradient, and stays in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float = 0.7,
        label_smoothing: float = 0.0,
    ):
        super().__init__(model, label_smoothing=label_smoothing)
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.alpha = temperature, alpha

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        logits_BK, t = self.model(*batch.inputs).float(), self.temperature
        with torch.no_grad():
            target_BK = F.softmax(self.teacher(*batch.inputs).float() / t, dim=1)
        hard = F.cross_entropy(logits_BK, batch.labels, label_smoothing=self.label_smoothing)
        soft = F.kl_div(F.log_softmax(logits_BK / t, dim=1), target_BK, reduction="batchmean") * t * t
        loss = self.alpha * soft + (1 - self.alpha) * hard
        accuracy = Answers(logits_BK.detach(), batch.labels)
        return loss, {
            "loss": loss.detach(),
            "loss/labels": hard.detach(),
            "loss/teacher": soft.detach(),
            "accuracy": accuracy,
        }
