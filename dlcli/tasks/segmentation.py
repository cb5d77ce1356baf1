"""Semantic segmentation: a class for every pixel.

Letters: B images, K classes, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.metrics.statistics import Sums
from dlcli.tasks.task import Task, Values

IGNORED = 255  # in a mask: a pixel that counts neither in the loss nor in the scores


class Segmentation(Task):
    """Cross-entropy per pixel plus `dice` times the Dice loss.

    A batch has `inputs`, the model's arguments, and masks (B, H, W) int64 of classes or IGNORED; the model
    gives logits (B, K, H, W).
    """

    def __init__(self, model: nn.Module, *, dice: float = 0.0) -> None:
        super().__init__()
        self.model, self.dice = model, dice

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        logits_BKHW = self.model(*batch.inputs)
        loss = self._losses(logits_BKHW, batch.masks).mean()
        with torch.no_grad():
            is_right = (logits_BKHW.argmax(1) == batch.masks).sum()
            accuracy = is_right / (batch.masks != IGNORED).sum().clamp(min=1)
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    @torch.no_grad()
    def statistics(self, source: Iterable[Any]) -> Sums:
        """mean_iou: intersection over union, each summed over all pixels of the set; the mean over the classes that
        occur in masks or answers. accuracy: share of right pixels. loss. Counted on the device, read once.
        """
        losses, counts = zip(*(self._measure(batch) for batch in source), strict=True)
        true_NK, answered_NK, both_NK = torch.cat(counts).cpu().double().unbind(1)
        parts = {"true": true_NK, "answered": answered_NK, "both": both_NK}
        return Sums(parts, overlap, means={"loss": torch.cat(losses).double().cpu()})

    def _measure(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss (B,) of each image, and its pixels by class, (B, 3, K)."""
        logits_BKHW = self.model(*batch.inputs)
        counts_B3K = count_pixels(logits_BKHW.argmax(1), batch.masks, logits_BKHW.shape[1])
        return self._losses(logits_BKHW, batch.masks), counts_B3K

    def _losses(self, logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
        loss_B = cross_entropy(logits_BKHW, masks_BHW)
        return loss_B + self.dice * dice_loss(logits_BKHW, masks_BHW) if self.dice else loss_B

    @torch.no_grad()
    def predict(self, *inputs: Tensor) -> Tensor:
        """Probabilities (B, K, H, W) float32, summing to 1 over K."""
        return self.model(*inputs).float().softmax(1)


def cross_entropy(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """(B,): the mean over all pixels of each image, ignored ones counting as 0.

    So the loss is a mean over images, whatever part of them is ignored: micro-batches and devices add up to the same,
    and an image without a known pixel gives 0, not a quotient of zeros.
    """
    return F.cross_entropy(logits_BKHW.float(), masks_BHW, ignore_index=IGNORED, reduction="none").mean((1, 2))


def dice_loss(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """(B,): 1 - 2 |p y| / (|p| + |y|), a mean over classes ("V-Net", Milletari et al. 2016, section 3, with sums
    instead of sums of squares, as in Sudre et al. 2017). One pixel is added to both sides of the quotient: a class that
    is neither in the mask nor in the answer has no loss.
    """
    known_B1HW = (masks_BHW != IGNORED).unsqueeze(1)
    answers_BKHW = logits_BKHW.float().softmax(1) * known_B1HW
    classes_K11 = torch.arange(logits_BKHW.shape[1], device=masks_BHW.device)[:, None, None]
    truth_BKHW = masks_BHW.unsqueeze(1) == classes_K11
    both_BK = (answers_BKHW * truth_BKHW).sum((2, 3))
    either_BK = answers_BKHW.sum((2, 3)) + truth_BKHW.sum((2, 3))
    return (1 - (2 * both_BK + 1) / (either_BK + 1)).mean(1)


def count_pixels(answers_BHW: Tensor, masks_BHW: Tensor, num_classes: int) -> Tensor:
    """(B, 3, K) int64: for each image and class, the known pixels of the class, those answered as it, and both.

    Counted by the image's confusion matrix, true class by answer. bincount would wait for the device.
    """
    cells_BP = (masks_BHW * num_classes + answers_BHW).masked_fill(masks_BHW == IGNORED, num_classes**2).flatten(1)
    counts = torch.zeros(len(cells_BP), num_classes**2 + 1, dtype=torch.int64, device=cells_BP.device)
    confusion_BKK = counts.scatter_add_(1, cells_BP, torch.ones_like(cells_BP))[:, :-1].unflatten(1, (num_classes, -1))
    return torch.stack([confusion_BKK.sum(2), confusion_BKK.sum(1), confusion_BKK.diagonal(dim1=1, dim2=2)], 1)


def overlap(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """mean_iou and accuracy, 0 where no pixel is known. sums: (K,) pixels each, true, answered and both."""
    both_K, true_K = sums["both"], sums["true"]
    either_K = true_K + sums["answered"] - both_K
    occurs_K = either_K > 0
    if not occurs_K.any():
        return {"mean_iou": 0.0, "accuracy": 0.0}
    return {
        "mean_iou": (both_K[occurs_K] / either_K[occurs_K]).mean().item(),
        "accuracy": (both_K.sum() / true_K.sum()).item(),
    }
