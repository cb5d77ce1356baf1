"""Classification: one label per example (an image, a sentence or a row of a table)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.tasks.task import Answers, Task, Values


class Classification(Task):
    """Cross-entropy, optionally with label smoothing (Szegedy et al. 2016, section 7), mixup (Zhang et al. 2018) or
    cutmix (Yun et al. 2019).

    Cross-entropy of logits is the negative log-likelihood (NLL) of the label under their softmax: torch's NLLLoss of
    their log-softmax, to the same value and gradient.

    A batch has `inputs`, the model's arguments, and labels (B,) int64; the model gives logits (B, K). mixup and cutmix
    need images (B, C, H, W) float: the alphas of their Beta distributions, 0 for off; with both on, each batch takes
    one of them at random. test_time_augmentation: {"mirror": bool, "shift": pixels}, for held-out images; see `answer`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        test_time_augmentation: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.model = model
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        augmentation = test_time_augmentation or {}
        self.mirrors, self.shift = bool(augmentation.get("mirror")), int(augmentation.get("shift") or 0)

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        if self.mixup or self.cutmix:
            return self.mixed_loss(batch)
        logits_BK = self.model(*batch.inputs)
        loss = F.cross_entropy(logits_BK, batch.labels, label_smoothing=self.label_smoothing)
        return loss, {"loss": loss.detach(), "accuracy": Answers(logits_BK.detach(), batch.labels)}

    def mixed_loss(self, batch: Any) -> tuple[Tensor, Values]:
        """Blends each image with another of the batch; the loss weighs both labels by their shares.

        One share for the whole batch, as in the papers' own code; `accuracy` counts the larger share's label.
        """
        if not hasattr(batch, "images"):
            message = f"mixup={self.mixup} and cutmix={self.cutmix} blend images, but these data are not images"
            raise ConfigError(message, hint="regularization.mixup=0.0 regularization.cutmix=0.0")
        images, others, share = mix(batch.images, mixup=self.mixup, cutmix=self.cutmix)
        logits_BK = self.model(images)
        smoothing = self.label_smoothing
        loss = share * F.cross_entropy(logits_BK, batch.labels, label_smoothing=smoothing)
        loss = loss + (1 - share) * F.cross_entropy(logits_BK, batch.labels[others], label_smoothing=smoothing)
        labels_B = batch.labels if share >= 0.5 else batch.labels[others]
        return loss, {"loss": loss.detach(), "accuracy": Answers(logits_BK.detach(), labels_B)}

    def metrics(self, batch: Any) -> dict[str, Tensor]:
        return self.measure(self.answer(*batch.inputs), batch.labels)

    def answer(self, *inputs: Tensor) -> Tensor:
        """Logits (B, K) of held-out examples: the model's, or with test-time augmentation the mean over several views
        of each image.

        The views of cifar10-airbench: the image for one half, its copies moved up-left and down-right for the other;
        with `mirrors` each of these as it is and mirrored, in equal parts.
        """
        if not (self.mirrors or self.shift):
            return self.model(*inputs)
        if len(inputs) != 1 or inputs[0].dim() != 4:
            message = "task.test_time_augmentation needs images, but these data are not images"
            raise ConfigError(
                message, hint="task.test_time_augmentation.mirror=false task.test_time_augmentation.shift=0"
            )
        (images_BCHW,) = inputs
        logits_BK = self._both_ways(images_BCHW)
        if not self.shift:
            return logits_BK
        moved = [self._both_ways(move(images_BCHW, by)) for by in (-self.shift, self.shift)]
        return (logits_BK + (moved[0] + moved[1]) / 2) / 2

    def _both_ways(self, images_BCHW: Tensor) -> Tensor:
        logits_BK = self.model(images_BCHW)
        return (logits_BK + self.model(images_BCHW.flip(-1))) / 2 if self.mirrors else logits_BK

    def measure(self, logits_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """The metrics of given logits: name -> (B,) float."""
        loss_B = F.cross_entropy(logits_BK.float(), labels_B, reduction="none")
        return {"accuracy": Answers(logits_BK, labels_B).is_right().float(), "loss": loss_B}

    @torch.no_grad()
    def predict(self, *inputs: Tensor) -> Tensor:
        """Probabilities (B, K) float32, each row summing to 1; images must be normalised."""
        return self.answer(*inputs).float().softmax(1)


def move(images_BCHW: Tensor, by: int) -> Tensor:
    """The images moved down and right by so many pixels, up and left where negative; their edge pixels fill the gap."""
    size, (height, width) = abs(by), images_BCHW.shape[-2:]
    padded = F.pad(images_BCHW, (size,) * 4, mode="replicate")
    start = size - by
    return padded[:, :, start : start + height, start : start + width]


def mix(images_BCHW: Tensor, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, float]:
    """Mixed images (B, C, H, W), the other image's position (B,) int64, and the share of the image itself.

    Draws from Python's and torch's global generators, which a checkpoint restores.
    """
    others_B = torch.randperm(len(images_BCHW)).to(images_BCHW.device)
    if mixup and (not cutmix or random.random() < 0.5):
        share = random.betavariate(mixup, mixup)
        return torch.lerp(images_BCHW[others_B], images_BCHW, share), others_B, share
    height, width = images_BCHW.shape[-2:]
    side = sqrt(1 - random.betavariate(cutmix, cutmix))  # of the cut, as a share of the image's sides
    row, column = random.randrange(height), random.randrange(width)
    top, bottom = (max(0, min(height, row + sign * round(height * side / 2))) for sign in (-1, 1))
    left, right = (max(0, min(width, column + sign * round(width * side / 2))) for sign in (-1, 1))
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = images_BCHW[others_B, :, top:bottom, left:right]
    return mixed, others_B, 1 - (bottom - top) * (right - left) / (height * width)
