"""The points of samplers that need no results: a trial's number decides, so that nothing is lost with a process."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

from dlcli.sweep.space.space import Space
from dlcli.sweep.study.definition import Definition


def point(definition: Definition, number: int, sampler: str | None = None) -> dict[str, str]:
    """The point of trial `number` (from 0): of a grid the number-th, otherwise drawn.

    sampler: grid, random or quasi-random; the definition's own where it is none given.
    """
    if (sampler or definition.sampler) == "grid":
        points = _grid(definition.space)
        return points[number % len(points)]
    shares = _SHARES[sampler or definition.sampler](definition, number)
    found: dict[str, str] = {}
    for axis in definition.space.axes:
        if axis.applies(found):
            found[axis.key] = axis.at(shares[axis.key])
    return found


@lru_cache(maxsize=2)
def _grid(space: Space) -> list[dict[str, str]]:
    return space.grid()


def _random(definition: Definition, number: int) -> dict[str, float]:
    """Uniform in [0, 1), from (seed, number, axis): an axis more changes nothing of the others."""
    return {
        axis.key: random.Random(f"{definition.seed}/{number}/{axis.key}").random() for axis in definition.space.axes
    }


def _quasi_random(definition: Definition, number: int) -> dict[str, float]:
    """The number-th point of a Sobol sequence (Sobol 1967), scrambled by the seed (Owen 1998), in [0, 1)."""
    from scipy.stats import qmc

    axes = definition.space.axes
    sequence = qmc.Sobol(len(axes), scramble=True, seed=definition.seed)
    if number:
        sequence.fast_forward(number)
    row = sequence.random(1)[0]
    return {axis.key: float(share) for axis, share in zip(axes, row, strict=True)}


_SHARES: dict[str, Callable[[Definition, int], dict[str, float]]] = {
    "random": _random,
    "quasi-random": _quasi_random,
}
