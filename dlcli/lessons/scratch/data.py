"""Points in the plane, of two classes: x_BD is (B, 2), y_B holds 0 and 1. The same generator gives the same points.

A straight line can separate `separable` and `clouds`, but not `moons`, `circles` and `xor`.
"""

from __future__ import annotations

import numpy as np

from dlcli.lessons.scratch.activations import Array

Data = tuple[Array, Array]


def separable(rng: np.random.Generator, num: int = 200, *, margin: float = 0.2) -> Data:
    """Points on both sides of a random line, none nearer to it than `margin`."""
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
    normal_D = np.array([np.cos(angle), np.sin(angle)])
    x_BD = rng.uniform(-2, 2, (4 * num, 2))
    distance_B = x_BD @ normal_D - offset
    x_BD, distance_B = x_BD[abs(distance_B) > margin][:num], distance_B[abs(distance_B) > margin][:num]
    return x_BD, (distance_B > 0).astype(float)


def clouds(rng: np.random.Generator, num: int = 200) -> Data:
    """Two round clouds around (-1.5, -1.5) and (1.5, 1.5), each far from the other: 4 standard deviations."""
    y_B = (np.arange(num) % 2).astype(float)
    centre_B1 = np.where(y_B > 0, 1.5, -1.5)[:, None]
    return centre_B1 + 0.5 * rng.standard_normal((num, 2)), y_B


def moons(rng: np.random.Generator, num: int = 200) -> Data:
    """Two half moons that reach into one another; their middle is near (0, 0)."""
    y_B = (np.arange(num) % 2).astype(float)
    angle_B = rng.uniform(0, np.pi, num)
    sign_B = 1 - 2 * y_B  # the second moon hangs upside down
    x_BD = np.stack([sign_B * (np.cos(angle_B) - 0.5), sign_B * (np.sin(angle_B) - 0.25)], axis=1)
    return 1.5 * x_BD + 0.15 * rng.standard_normal((num, 2)), y_B


def circles(rng: np.random.Generator, num: int = 200) -> Data:
    """A disc inside a ring."""
    y_B = (np.arange(num) % 2).astype(float)
    radius_B = np.where(y_B > 0, 0.7, 1.8) + 0.15 * rng.standard_normal(num)
    angle_B = rng.uniform(0, 2 * np.pi, num)
    return radius_B[:, None] * np.stack([np.cos(angle_B), np.sin(angle_B)], axis=1), y_B


def xor(rng: np.random.Generator, num: int = 200) -> Data:
    """Four clouds at the corners of a square, the same class across each diagonal (Minsky and Papert 1969)."""
    corner_B = np.arange(num) % 4
    centre_BD = np.array([[-1.2, -1.2], [1.2, 1.2], [-1.2, 1.2], [1.2, -1.2]])[corner_B]
    return centre_BD + 0.35 * rng.standard_normal((num, 2)), (corner_B >= 2).astype(float)


SETS = {"separable": separable, "clouds": clouds, "moons": moons, "circles": circles, "xor": xor}
