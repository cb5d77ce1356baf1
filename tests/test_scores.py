"""Scores against worked examples and scikit-learn."""

from __future__ import annotations

import pytest
import torch

from dlcli.evaluation import scores


def test_wilsons_interval_is_the_published_one() -> None:
    assert scores.wilson_interval(15, 148) == pytest.approx(
        (0.0624, 0.1605), abs=1e-4
    )  # Newcombe 1998, table I: 15/148
    assert scores.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)  # the same, 0/20
    low, high = scores.wilson_interval(20, 20)
    assert high == pytest.approx(1.0) and low == pytest.approx(1 - 0.1611, abs=1e-4)


def test_the_confusion_matrix_is_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix

    g = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, 4, (2, 200), generator=g)
    expected = confusion_matrix(labels, predicted, labels=range(4)).tolist()
    assert scores.confusion_matrix(labels, predicted, 4).tolist() == expected


def test_calibration_error_of_a_worked_example() -> None:
    # two bins: confidence 0.9 of which half are right, confidence 0.6 of which all are right
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert scores.calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-6)
    assert scores.calibration_error(torch.eye(3), torch.arange(3)) == pytest.approx(0.0)


def test_the_hardest_pairs_are_the_commonest_confusions() -> None:
    confusion = torch.tensor([[9, 1, 0], [4, 5, 0], [0, 2, 7]])
    assert scores.hardest_pairs(confusion) == [(1, 0, 4), (2, 1, 2), (0, 1, 1)]


def test_the_interval_of_a_mean() -> None:
    low, high = scores.mean_interval(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert (low + high) / 2 == pytest.approx(1.5)
    assert high - low == pytest.approx(2 * 1.96 * 1.2909944 / 2, rel=1e-4)
