"""Mean average precision as COCO measures it: matching by pycocotools' `COCOeval`, areas of all sizes.

Precision is read at 101 recalls from 0 to 1, as the best at this recall or a higher one, and averaged: over recalls,
classes and, for `map`, the overlaps 0.50, 0.55, ... 0.95 above which a detection counts as right.

Letters: D detections and G boxes of one image and class, T overlaps, N detections of a class in all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from torch import Tensor

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image and class that count: those with the highest scores


class Answer(NamedTuple):
    """One image: detections (D, 4), (D,), (D,) and the true boxes (G, 4), (G,). Boxes xyxy."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray


class Precision(NamedTuple):
    """Scores in [0, 1]. per_class, per_class50: by label, for classes that have boxes. Without any box all are 0."""

    map: float
    map50: float
    per_class: dict[int, float]
    per_class50: dict[int, float]


class Ranked(NamedTuple):
    """All detections of one class, the highest score first. right: (T, N) bool, whether each finds a box at each
    overlap; image_N: the image of each; boxes_I: the number of boxes in each image.
    """

    right_TN: np.ndarray
    image_N: np.ndarray
    boxes_I: np.ndarray


class Detections:
    """The parts of images in map50 and map: see whole_set.Statistics. Matched once; a sample only counts again."""

    means: Mapping[str, Tensor] = MappingProxyType({})
    num_samples = 500  # with 87 images, some milliseconds each

    def __init__(self, answers: Sequence[Answer]):
        self.num_images = len(answers)
        classes = sorted({int(label) for answer in answers for label in answer.true_labels})
        self.by_class = {label: ranked(answers, label) for label in classes}

    def __len__(self) -> int:
        return self.num_images

    def scores(self) -> dict[str, float]:
        return self._scores(None)

    def resampled(self, counts_RN: Tensor) -> Iterator[dict[str, float]]:
        return map(self._scores, counts_RN.long().numpy())

    def _scores(self, counts_I: np.ndarray | None) -> dict[str, float]:
        precision = self.precision(counts_I)
        return {"map50": precision.map50, "map": precision.map}

    def precision(self, counts_I: np.ndarray | None = None) -> Precision:
        """The scores of the set itself, or of a sample that has each image as often as counts_I (int64) says."""
        counts_I = np.ones(self.num_images, dtype=np.int64) if counts_I is None else counts_I
        by_class = {label: average_precisions(of_class, counts_I) for label, of_class in self.by_class.items()}
        found = {label: values_T for label, values_T in by_class.items() if values_T is not None}
        if not found:
            return Precision(0.0, 0.0, {}, {})
        values_KT = np.stack(list(found.values()))
        return Precision(
            float(values_KT.mean()),
            float(values_KT[:, 0].mean()),
            {label: float(values_T.mean()) for label, values_T in found.items()},
            {label: float(values_T[0]) for label, values_T in found.items()},
        )


def ranked(answers: Iterable[Answer], label: int) -> Ranked:
    scores, right, boxes = [], [], []
    for answer in answers:
        mine, true = answer.labels == label, answer.true_labels == label
        scores_D = answer.scores[mine]
        order = np.argsort(-scores_D, kind="mergesort")[:MOST]
        scores.append(scores_D[order])
        right.append(match(answer.boxes[mine][order], answer.true_boxes[true]))
        boxes.append(int(true.sum()))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    image_N = np.repeat(np.arange(len(scores)), [len(scores_D) for scores_D in scores])
    return Ranked(np.concatenate(right, axis=1)[:, order], image_N[order], np.array(boxes, dtype=np.int64))


def average_precisions(of_class: Ranked, counts_I: np.ndarray) -> np.ndarray | None:
    """(T,) float64: the precision at each overlap; None if no image of the sample has a box of the class.

    The copies of a detection follow one another. Taking them as one changes nothing: the precision after the last copy
    of a right one is the best of theirs. The order is only ambiguous if an image's own scores are equal.
    """
    num_boxes = int(counts_I @ of_class.boxes_I)
    if not num_boxes:
        return None
    counts_N = counts_I[of_class.image_N]
    return np.array([area_under(right_N, counts_N, num_boxes) for right_N in of_class.right_TN])


def match(boxes_D4: np.ndarray, true_G4: np.ndarray) -> np.ndarray:
    """(T, D) bool: whether each detection, the highest score first, is the first to find a box.

    It takes the free box that it overlaps most; of equal ones the last, as pycocotools does.
    """
    right_TD = np.zeros((len(OVERLAPS), len(boxes_D4)), dtype=bool)
    if not len(true_G4):
        return right_TD
    iou_DG = pairwise_iou(boxes_D4, true_G4)
    is_taken_TG = np.zeros((len(OVERLAPS), len(true_G4)), dtype=bool)
    rows, last = np.arange(len(OVERLAPS)), len(true_G4) - 1
    for d, iou_G in enumerate(iou_DG):
        left_TG = np.where(is_taken_TG, -1.0, iou_G)
        best_T = last - left_TG[:, ::-1].argmax(1)
        right_TD[:, d] = left_TG[rows, best_T] >= OVERLAPS
        is_taken_TG[rows, best_T] |= right_TD[:, d]
    return right_TD


def area_under(right_N: np.ndarray, counts_N: np.ndarray, num_boxes: int) -> float:
    """The mean over the 101 recalls of the best precision at that recall or beyond; 0 at recalls that are not reached.

    counts_N: how often each detection occurs.
    """
    if not len(right_N):
        return 0.0
    found_N = np.cumsum(right_N * counts_N)
    precision_N = found_N / np.cumsum(counts_N).clip(min=1)
    precision_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    places = np.searchsorted(found_N / num_boxes, RECALLS, side="left")
    return float(np.append(precision_N, 0.0)[places].mean())


def pairwise_iou(a_D4: np.ndarray, b_G4: np.ndarray) -> np.ndarray:
    """(D, G) float64 in [0, 1]: intersection over union."""
    a_D14, b_1G4 = a_D4.astype(np.float64)[:, None], b_G4.astype(np.float64)[None]
    sides = np.minimum(a_D14[..., 2:], b_1G4[..., 2:]) - np.maximum(a_D14[..., :2], b_1G4[..., :2])
    common_DG = sides.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a_D14, b_1G4)]
    return common_DG / np.maximum(areas[0] + areas[1] - common_DG, 1e-12)
