"""Object detection: the classes and boxes of the objects in an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from dlcli.tasks.metrics.average_precision import Answer, Detections
from dlcli.tasks.task import Task, Values


class Detection(Task):
    """The detector's own losses, summed; scored by mean average precision, as COCO does.

    A batch has images (B, C, H, W), boxes (B, M, 4) float32 xyxy in pixels and labels (B, M) int64, -1 where there is
    no box. A detector has two methods beside its forward:

        loss(images, boxes, labels) -> {name: scalar}
        detect(images) -> for each image boxes (D, 4), scores (D,) and labels (D,), the best first
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        losses = self.model.loss(batch.images, batch.boxes, batch.labels)  # type: ignore[operator]
        loss = sum(losses.values())
        return loss, {"loss": loss.detach()} | {f"loss/{name}": value.detach() for name, value in losses.items()}

    def detect(self, images_BCHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self.model.detect(images_BCHW)  # type: ignore[operator]

    def statistics(self, source: Iterable[Any]) -> Detections:
        """map50: mean average precision at an overlap of one half; map: the mean over overlaps from 0.50 to 0.95."""
        answers = []
        for batch in source:
            for found, true_boxes, true_labels in zip(
                self.detect(batch.images), batch.boxes, batch.labels, strict=True
            ):
                boxes, scores, labels = (tensor.float().cpu().numpy() for tensor in found)
                is_box = true_labels >= 0
                true = true_boxes[is_box].cpu().numpy(), true_labels[is_box].cpu().numpy()
                answers.append(Answer(boxes, scores, labels, *true))
        return Detections(answers)
