"""Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) with a ResNet-50 and a feature pyramid, from torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NORMS = ("batch", "frozen")


class FasterRCNN(nn.Module):
    """Proposals from every map of the pyramid, and a head that gives each proposal's class and exact box.

    images (B, C, H, W) float normalised -> for each image boxes (D, 4) xyxy in pixels, scores (D,), labels (D,) int64.
    The parameters have torchvision's names, so that training can start from its weights.

    norm: "batch" to start from fresh weights; "frozen" (fixed statistics) to start from published ones.
    trainable_layers: of the backbone's five, from the last on. proposals: of an image, for the head.
    smallest_anchor: side, in pixels, of the anchors on the finest map of the pyramid; twice as large on each coarser
    one. 32 as published, for images of about 800 x 1,333; no anchor overlaps enough with much smaller objects.
    min_score, max_overlap, max_detections: as in Yolo.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        norm: str = "batch",
        trainable_layers: int = 5,
        smallest_anchor: int = 32,
        proposals: int = 300,
        score_threshold: float = 0.01,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ):
        super().__init__()
        parts = published(
            image_shape, norm, trainable_layers, smallest_anchor,
            num_classes=num_classes + 1,  # 0 is the background
            rpn_pre_nms_top_n_train=4 * proposals, rpn_pre_nms_top_n_test=4 * proposals,
            rpn_post_nms_top_n_train=proposals, rpn_post_nms_top_n_test=proposals,
            box_score_thresh=score_threshold, box_nms_thresh=nms_iou, box_detections_per_img=max_detections,
        )  # fmt: skip
        self.transform, self.backbone = parts.transform, parts.backbone
        self.rpn, self.roi_heads = parts.rpn, parts.roi_heads

    def forward(self, images_BCHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self.detect(images_BCHW)

    def loss(self, images_BCHW: Tensor, boxes_BM4: Tensor, labels_BM: Tensor) -> dict[str, Tensor]:
        """The losses of the proposals and of the head, for class and box each. labels: int64, -1 where there is no box.

        The proposals that count are drawn from torch's global generator.
        """
        is_box_BM = labels_BM >= 0
        targets = [  # waits for the device: the number of boxes is only known there
            {"boxes": boxes_M4[is_box], "labels": labels_M[is_box] + 1}
            for boxes_M4, labels_M, is_box in zip(boxes_BM4, labels_BM, is_box_BM, strict=True)
        ]
        before = self.rpn.training, self.roi_heads.training
        self.rpn.training = self.roi_heads.training = (
            True  # for the losses of held-out images too; no statistics are kept
        )
        try:
            _, losses = self._parts(images_BCHW, targets)
        finally:
            self.rpn.training, self.roi_heads.training = before
        return {
            "object": losses["loss_objectness"],
            "proposal": losses["loss_rpn_box_reg"],
            "class": losses["loss_classifier"],
            "box": losses["loss_box_reg"],
        }

    @torch.no_grad()
    def detect(self, images_BCHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        before = self.rpn.training, self.roi_heads.training
        self.rpn.training = self.roi_heads.training = False
        try:
            found, _ = self._parts(images_BCHW, None)
        finally:
            self.rpn.training, self.roi_heads.training = before
        return [(one["boxes"], one["scores"], one["labels"] - 1) for one in found]

    def _parts(self, images_BCHW: Tensor, targets: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        images, targets = self.transform(list(images_BCHW), targets)  # its scale is 1: it makes the sides divisible
        maps = self.backbone(images.tensors)
        proposals, losses = self.rpn(images, maps, targets)
        found, head_losses = self.roi_heads(maps, proposals, images.image_sizes, targets)
        return found, losses | head_losses


def published(
    image_shape: Sequence[int], norm: str, trainable_layers: int, smallest_anchor: int, **settings: Any
) -> Any:
    """torchvision's network, with fresh weights, for normalised images of this shape."""
    from torchvision.models.detection import (
        faster_rcnn,
    )  # imported here: it costs seconds, and only this model needs it
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.resnet import resnet50
    from torchvision.ops import FrozenBatchNorm2d

    channels, height, width = image_shape
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    sides = tuple((smallest_anchor * 2**level,) for level in range(5))
    return faster_rcnn.FasterRCNN(
        _resnet_fpn_extractor(body, trainable_layers),
        min_size=min(height, width), max_size=max(height, width),
        image_mean=[0.0] * channels, image_std=[1.0] * channels,
        rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        **settings,
    )  # fmt: skip
