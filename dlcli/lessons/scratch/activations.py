"""Activation functions: they bend a weighted sum, so that a second layer can do what one cannot.

sigmoid(z)          the value, for z of any shape
sigmoid_slope(z)    its derivative at z
ACTIVATIONS         the four, with range, strength and weakness
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAK = 0.01  # the share of a negative sum that leaky ReLU lets through


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), as e^-log(1 + e^-z): the plain form overflows for z below -709."""
    return np.exp(-np.logaddexp(0.0, -z))


def sigmoid_slope(z: Array) -> Array:
    return sigmoid(z) * sigmoid(-z)  # s (1 - s), since 1 - s(z) = s(-z)


def tanh(z: Array) -> Array:
    return np.tanh(z)


def tanh_slope(z: Array) -> Array:
    return 1.0 - np.tanh(z) ** 2


def relu(z: Array) -> Array:
    return np.maximum(z, 0.0)


def relu_slope(z: Array) -> Array:
    return np.where(z > 0, 1.0, 0.0)  # at the kink any slope from 0 to 1 would do; PyTorch also takes 0


def leaky_relu(z: Array) -> Array:
    return np.where(z > 0, z, LEAK * z)


def leaky_relu_slope(z: Array) -> Array:
    return np.where(z > 0, 1.0, LEAK)


@dataclass(frozen=True)
class Activation:
    """value, slope: functions of z; low, high: the range (both ends are reached only by ReLU's 0)."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    formula: str
    derivative: str
    low: float
    high: float
    pro: str
    con: str


ACTIVATIONS = {
    "sigmoid": Activation(
        sigmoid,
        sigmoid_slope,
        "1 / (1 + e^-z)",
        "s (1 - s)",
        0.0,
        1.0,
        "reads as a probability",
        "slope 0.25 at most, next to none far from 0: deep layers stop learning",
    ),
    "tanh": Activation(
        tanh,
        tanh_slope,
        "(e^z - e^-z) / (e^z + e^-z)",
        "1 - t^2",
        -1.0,
        1.0,
        "centred on 0, slope 1 there",
        "flat far from 0, like the sigmoid",
    ),
    "relu": Activation(
        relu,
        relu_slope,
        "max(0, z)",
        "1 if z > 0 else 0",
        0.0,
        np.inf,
        "cheap, slope 1 for every z > 0",
        "a unit whose sums are all negative has slope 0 and never learns again",
    ),
    "leaky_relu": Activation(
        leaky_relu,
        leaky_relu_slope,
        "z if z > 0 else 0.01 z",
        "1 if z > 0 else 0.01",
        -np.inf,
        np.inf,
        "no unit dies: the slope is never 0",
        "one more number to choose, which seldom helps",
    ),
}
