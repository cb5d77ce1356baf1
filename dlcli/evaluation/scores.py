"""Numbers that say how good a classifier is, and how sure one may be of that. Tensors in, numbers out."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(num_right: float, num_total: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share in [0, 1] (Wilson 1927): honest near 0 and 1, where share +- z * error is not."""
    if num_total == 0:
        return 0.0, 1.0
    share, z2 = num_right / num_total, z * z
    middle = (share + z2 / (2 * num_total)) / (1 + z2 / num_total)
    half = z / (1 + z2 / num_total) * sqrt(share * (1 - share) / num_total + z2 / (4 * num_total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values_N: Tensor, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a mean by the central limit: mean +- z * s / sqrt(N). values_N: (N,) float."""
    values_N = values_N.double()
    if len(values_N) < 2:
        return float("-inf"), float("inf")
    mean, half = values_N.mean().item(), z * (values_N.std() / sqrt(len(values_N))).item()
    return mean - half, mean + half


def confusion_matrix(labels_N: Tensor, predicted_N: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64: row = true class, column = predicted class."""
    return torch.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2).view(num_classes, num_classes)


def calibration_error(probabilities_NK: Tensor, labels_N: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017, eq. 3).

    The mean distance between confidence and accuracy over `num_bins` equal bins of confidence, weighted by examples.
    """
    confidence_N, predicted_N = probabilities_NK.double().max(1)
    right_N = (predicted_N == labels_N).double()
    bin_N = (confidence_N * num_bins).ceil().long().clamp(1, num_bins) - 1  # (low, high], as in the paper
    gap = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bin_N, confidence_N - right_N)
    return gap.abs().sum().item() / max(1, len(labels_N))


def hardest_pairs(confusion_KK: Tensor, most: int = 3) -> list[tuple[int, int, int]]:
    """(true, predicted, how often) of the commonest confusions, commonest first; none that never happened."""
    wrong = confusion_KK.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    num_classes = len(confusion_KK)
    pairs = zip(places[:most].tolist(), counts[:most].tolist(), strict=True)
    return [(place // num_classes, place % num_classes, count) for place, count in pairs if count]
