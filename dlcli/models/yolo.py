"""A single-stage detector without anchors: every cell of maps at 1/8, 1/16 and 1/32 of the image gives the class of the
object there and the distance of its four sides (FCOS, Tian et al. 2019, arXiv 1904.01355; YOLOX, arXiv 2107.08430).

The cells that already answer best are trained to answer for a box: task-aligned assignment (TOOD, Feng et al. 2021,
arXiv 2108.07755, section 3.2, with the constants of YOLOv8).

Letters: B images, C channels, H rows, W columns; A cells of all maps together; M boxes of the image with most;
K classes; D detections of an image. Boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 10  # at most so many answer for a box
SCORE_POWER, IOU_POWER = 0.5, 6.0  # of a cell's alignment with a box
PRIOR = 0.01  # probability of a class in a cell at the beginning (Lin et al. 2017, arXiv 1708.02002, section 3.3)
CANDIDATES = 1000  # detections of an image, before overlapping ones are removed
LONGEST = 10.0  # logarithm of a side's distance in strides, at most: exp must not overflow


class Yolo(nn.Module):
    """images (B, C, H, W) float normalised -> logits (B, A, K), boxes (B, A, 4).

    widths: channels of the maps at 1/4, 1/8, 1/16, ...; all but the first are used to detect. blocks: residual blocks
    of each. neck: channels of the maps used to detect. box_weight: weight of the boxes' loss; the classes' has 1.
    min_score: of a detection. max_overlap: intersection over union of two detections of one class, above which only
    the better one is kept. max_detections: of an image.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: int = 1,
        fpn_channels: int = 64,
        box_weight: float = 5.0,
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
        max_detections: int = 100,
    ):
        super().__init__()
        self.num_classes, self.box_weight = num_classes, box_weight
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.stem = convolution(image_shape[0], widths[0], kernel=6, stride=4)
        self.stages = nn.ModuleList([nn.Sequential(*(Residual(widths[0]) for _ in range(blocks)))])
        for before, width in itertools.pairwise(widths):
            rest = (Residual(width) for _ in range(blocks))
            self.stages.append(nn.Sequential(convolution(before, width, stride=2), *rest))
        self.strides = [8 * 2**i for i in range(len(widths) - 1)]
        self.laterals = nn.ModuleList(convolution(width, fpn_channels, kernel=1) for width in widths[1:])
        self.smooth = nn.ModuleList(convolution(fpn_channels, fpn_channels) for _ in widths[1:])
        self.classes = nn.Sequential(convolution(fpn_channels, fpn_channels), nn.Conv2d(fpn_channels, num_classes, 1))
        self.sides = nn.Sequential(convolution(fpn_channels, fpn_channels), nn.Conv2d(fpn_channels, 4, 1))
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        nn.init.constant_(self.sides[-1].bias, math.log(2.0))  # type: ignore[arg-type]  # boxes of 4 x 4 cells

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = [], []
        for stride, map_BCHW in zip(self.strides, self._maps(images_BCHW), strict=True):
            logits.append(self.classes(map_BCHW).flatten(2).transpose(1, 2).float())
            sides_BA4 = self.sides(map_BCHW).flatten(2).transpose(1, 2).float().clamp(max=LONGEST).exp() * stride
            centres_A2 = cell_centres(map_BCHW.shape[2], map_BCHW.shape[3], stride, map_BCHW.device)
            boxes.append(torch.cat([centres_A2 - sides_BA4[..., :2], centres_A2 + sides_BA4[..., 2:]], -1))
        return torch.cat(logits, 1), torch.cat(boxes, 1)

    def _maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """One per stride, (B, neck, H / stride, W / stride) rounded up; coarse maps are added to finer ones."""
        x = self.stages[0](self.stem(images_BCHW))
        maps = []
        for stage, lateral in zip(self.stages[1:], self.laterals, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[2:], mode="nearest")
        return [smooth(map_BCHW) for smooth, map_BCHW in zip(self.smooth, maps, strict=True)]

    def loss(self, images_BCHW: Tensor, boxes_BM4: Tensor, labels_BM: Tensor) -> dict[str, Tensor]:
        """{"class", "box"}: means over the images of a sum over the cells, divided by the sum of the target scores.

        boxes: float xyxy; labels: int64, -1 where there is no box.
        """
        if not labels_BM.shape[1]:  # not a box in the batch
            boxes_BM4, labels_BM = (
                boxes_BM4.new_zeros(len(boxes_BM4), 1, 4),
                labels_BM.new_full((len(labels_BM), 1), -1),
            )
        logits_BAK, predicted_BA4 = self(images_BCHW)
        centres_A2 = self._centres(images_BCHW)
        box_BA, score_BA = assign(logits_BAK.detach(), predicted_BA4.detach(), centres_A2, boxes_BM4, labels_BM)
        label_BA = labels_BM.gather(1, box_BA).clamp(min=0)
        target_BAK = F.one_hot(label_BA, self.num_classes) * score_BA[:, :, None]
        weight_B1 = 1 / score_BA.sum(1, keepdim=True).clamp(min=1)
        class_BA = F.binary_cross_entropy_with_logits(logits_BAK, target_BAK, reduction="none").sum(2)
        goal_BA4 = boxes_BM4.gather(1, box_BA[:, :, None].expand(-1, -1, 4))
        box_loss_BA = (1 - generalized_iou(predicted_BA4, goal_BA4)) * score_BA
        return {
            "class": (class_BA * weight_B1).sum(1).mean(),
            "box": self.box_weight * (box_loss_BA * weight_B1).sum(1).mean(),
        }

    def _centres(self, images_BCHW: Tensor) -> Tensor:
        """(A, 2): x and y of all cells, in the order of the answers."""
        height, width = images_BCHW.shape[2:]
        sizes = [(-(-height // stride), -(-width // stride), stride) for stride in self.strides]
        return torch.cat([cell_centres(*size, images_BCHW.device) for size in sizes])

    @torch.no_grad()
    def detect(self, images_BCHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image: boxes (D, 4), scores (D,) in [0, 1], the best first, and labels (D,) int64."""
        from torchvision.ops import batched_nms  # imported here: it costs seconds

        logits_BAK, boxes_BA4 = self(images_BCHW)
        height, width = images_BCHW.shape[2:]
        size = boxes_BA4.new_tensor([width, height, width, height])
        found = []
        for scores_AK, boxes_A4 in zip(logits_BAK.sigmoid(), boxes_BA4, strict=True):
            scores, places = scores_AK.flatten().topk(min(CANDIDATES, scores_AK.numel()))
            sure = scores >= self.score_threshold  # waits for the device: the number is only known there
            scores, places = scores[sure], places[sure]
            boxes = torch.minimum(boxes_A4[places // self.num_classes].clamp(min=0), size)
            labels = places % self.num_classes
            kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
            found.append((boxes[kept], scores[kept], labels[kept]))
        return found


class Residual(nn.Module):
    """x + two convolutions 3 x 3, the second without activation; SiLU after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.first = convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]  # starts as the identity (Goyal et al. 2017, section 5.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(self.first(x)))


def convolution(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution that divides rows and columns by `stride`, rounded up."""
    padding = (kernel - 1) // 2 if stride < 4 else (kernel - stride + 1) // 2 + 1
    layer = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.SiLU(inplace=True))


def cell_centres(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """(rows * columns, 2) float32: x and y in pixels, row by row."""
    x, y = ((torch.arange(size, device=device) + 0.5) * stride for size in (columns, rows))
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)


@torch.no_grad()
def assign(
    logits_BAK: Tensor, predicted_BA4: Tensor, centres_A2: Tensor, boxes_BM4: Tensor, labels_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """For each cell, the box it answers for, (B, A) int64, and the score it should give, (B, A); 0 for background.

    A cell may answer for a box that contains its centre; of these, the CELLS cells with the highest alignment
    score^0.5 * iou^6 do. If a box is too small to contain a centre, the nearest cell answers for it.
    """
    is_box_BM1 = (labels_BM >= 0)[:, :, None]
    iou_BMA = pairwise_iou(boxes_BM4, predicted_BA4)
    classes_BMA = labels_BM.clamp(min=0)[:, :, None].expand_as(iou_BMA)
    score_BMA = logits_BAK.sigmoid().transpose(1, 2).gather(1, classes_BMA)
    aligned_BMA = score_BMA.pow(SCORE_POWER) * iou_BMA.pow(IOU_POWER)
    may_BMA = may_answer(centres_A2, boxes_BM4) & is_box_BM1
    rank_BMA = torch.where(may_BMA, aligned_BMA + 1e-12, -1.0)  # if none overlaps, any one box, but only one
    best_BMK = rank_BMA.topk(min(CELLS, rank_BMA.shape[2]), dim=2).indices
    does_BMA = torch.zeros_like(may_BMA).scatter_(2, best_BMK, True) & may_BMA
    box_BA = torch.where(does_BMA, iou_BMA, -1.0).argmax(1)  # of several boxes, the one it fits best
    does_BMA &= F.one_hot(box_BA, does_BMA.shape[1]).transpose(1, 2).bool()
    aligned_BMA, iou_BMA = aligned_BMA * does_BMA, iou_BMA * does_BMA
    share_BMA = aligned_BMA / aligned_BMA.amax(2, keepdim=True).clamp(min=1e-12)
    return box_BA, (share_BMA * iou_BMA.amax(2, keepdim=True)).amax(1)


def may_answer(centres_A2: Tensor, boxes_BM4: Tensor) -> Tensor:
    """(B, M, A) bool: centres inside the box, and the one nearest to the box's own centre."""
    to_low_BMA2 = centres_A2 - boxes_BM4[:, :, None, :2]
    to_high_BMA2 = boxes_BM4[:, :, None, 2:] - centres_A2
    inside_BMA = torch.minimum(to_low_BMA2, to_high_BMA2).amin(-1) > 0
    nearest_BM1 = (to_low_BMA2 - to_high_BMA2).square().sum(-1).argmin(2, keepdim=True)
    return inside_BMA.scatter(2, nearest_BM1, True)


def pairwise_iou(a_BM4: Tensor, b_BA4: Tensor) -> Tensor:
    """Intersection over union: (B, M, A) in [0, 1]."""
    a_BM14, b_B1A4 = a_BM4[:, :, None], b_BA4[:, None]
    common = overlap(a_BM14, b_B1A4)
    return common / (area(a_BM14) + area(b_B1A4) - common).clamp(min=1e-9)


def generalized_iou(a_BA4: Tensor, b_BA4: Tensor) -> Tensor:
    """(B, A) in [-1, 1]: intersection over union, minus the empty share of the box around both (arXiv 1902.09630)."""
    common = overlap(a_BA4, b_BA4)
    union = (area(a_BA4) + area(b_BA4) - common).clamp(min=1e-9)
    low, high = torch.minimum(a_BA4[..., :2], b_BA4[..., :2]), torch.maximum(a_BA4[..., 2:], b_BA4[..., 2:])
    around = (high - low).prod(-1).clamp(min=1e-9)
    return common / union - (around - union) / around


def overlap(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
