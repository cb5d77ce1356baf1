"""Mean average precision against torchmetrics with pycocotools, and cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlcli.tasks.metrics.average_precision import OVERLAPS, RECALLS, Answer, Detections

NOTHING = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


def answer(boxes: list, scores: list, labels: list, true_boxes: list, true_labels: list) -> Answer:
    return Answer(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
        np.array(true_boxes, dtype=np.float32).reshape(-1, 4),
        np.array(true_labels, dtype=np.int64),
    )


def random_answers(seed: int, *, images: int = 12, ties: bool = False) -> list[Answer]:
    """Boxes and detections near them; some images without the one, the other, or both; more than 100 in one of them."""
    random = np.random.default_rng(seed)
    answers = []
    for i in range(images):
        num_true = 0 if i in (0, 1) else int(random.integers(1, 8))
        num_false = 0 if i in (1, 2) else (150 if i == 3 else int(random.integers(0, 6)))
        corners = random.uniform(0, 60, (num_true, 2))
        true = np.concatenate([corners, corners + random.uniform(5, 40, (num_true, 2))], 1)
        near = (true + random.normal(0, 1.5, true.shape)) if i != 2 else true[:0]
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        corners = random.uniform(0, 60, (num_false, 2))
        far = np.concatenate([corners, corners + random.uniform(5, 40, (num_false, 2))], 1)
        labels = random.integers(0, 3, num_true)
        found = np.where(random.uniform(size=len(near)) < 0.8, labels[: len(near)], 1)
        scores = random.uniform(size=len(near) + num_false)
        scores = np.round(scores, 1) if ties else scores
        all_labels = np.concatenate([found, random.integers(0, 4, num_false)])
        answers.append(answer(np.concatenate([near, far]), scores, all_labels, true, labels))
    return answers


def by_torchmetrics(answers: list[Answer]) -> dict[str, torch.Tensor]:
    from torchmetrics.detection import MeanAveragePrecision

    # Its own lists are of float32: a recall of 1 / 5 would not reach 0.2, as it does in pycocotools.
    lists = {"iou_thresholds": OVERLAPS.tolist(), "rec_thresholds": RECALLS.tolist()}
    metric = MeanAveragePrecision(class_metrics=True, **lists)
    metric.warn_on_many_detections = False
    for one in answers:
        boxes, scores, labels, true_boxes, true_labels = map(torch.from_numpy, one)
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        metric.update([found], [{"boxes": true_boxes, "labels": true_labels}])
    return metric.compute()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_pycocotools_on_random_boxes(seed: int, ties: bool) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    answers = random_answers(seed, ties=ties)
    ours, theirs = Detections(answers).precision(), by_torchmetrics(answers)
    assert 0.05 < ours.map < ours.map50 < 1
    assert ours.map == pytest.approx(theirs["map"].item(), abs=1e-6)
    assert ours.map50 == pytest.approx(theirs["map_50"].item(), abs=1e-6)
    per_class = dict(zip(theirs["classes"].tolist(), theirs["map_per_class"].tolist(), strict=True))
    for label, value in ours.per_class.items():
        assert value == pytest.approx(per_class[label], abs=1e-6)


def test_what_can_be_counted() -> None:
    box, other = [0, 0, 10, 10], [50, 50, 60, 60]
    perfect = answer([box, other], [0.9, 0.8], [0, 1], [box, other], [0, 1])
    assert Detections([perfect]).precision()[:2] == (1.0, 1.0)
    half = answer([box], [0.9], [0], [box, other], [0, 0])  # recalls from 0 to 0.5: 51 of 101
    assert Detections([half]).precision().map50 == pytest.approx(51 / 101)
    twice = answer([box, box], [0.9, 0.8], [0, 0], [box, other], [0, 0])  # the second finds nothing that is left
    assert Detections([twice]).precision().map50 == pytest.approx(51 / 101)
    loose = answer([[0, 0, 10, 8]], [0.9], [0], [box], [0])  # an overlap of 0.8: right up to 0.80
    assert Detections([loose]).precision().map == pytest.approx(7 / 10)


def test_images_without_boxes_and_without_detections() -> None:
    box = [0, 0, 10, 10]
    empty = Answer(*NOTHING, *NOTHING[::2])
    assert Detections([]).precision() == (0.0, 0.0, {}, {})
    assert Detections([empty]).precision().map == 0.0
    assert Detections([answer([], [], [], [box], [2])]).precision() == (0.0, 0.0, {2: 0.0}, {2: 0.0})
    assert Detections([answer([box], [0.5], [2], [], [])]).precision().map == 0.0
    mistaken = answer([box], [0.95], [2], [], [])
    right = answer([box], [0.9], [2], [box], [2])
    assert Detections([mistaken, right, empty]).precision().map50 == pytest.approx(0.5)
