"""What a sweep varies: axes, each a setting or a group with several values or a range, and the points of their space.

    Axis("model", values=("mlp", "lenet5"))                    a choice: texts, as a command would write them
    Axis("optimizer.lr", low=1e-4, high=1e-1, is_log=True)     a range

A point is one text per axis that applies: {"model": "mlp", "optimizer.lr": "0.0123"}. An axis of a setting that only
some options of a group have (`model.hidden`, with `model=mlp,lenet5`) applies where one of those is chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dlcli.errors import ConfigError

MOST_POINTS = 1_000_000  # of a grid


@dataclass(frozen=True)
class Axis:
    """values: the texts of a choice; otherwise low to high, both ends possible, in steps where `step` is given.

    only_with: options of the axis' own group that have the setting, where that group is varied too and not all do.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    is_log: bool = False
    step: float | None = None
    only_with: tuple[str, ...] | None = None
    text: str = field(default="", compare=False)  # as the user wrote it

    def applies(self, point: Mapping[str, str]) -> bool:
        return self.only_with is None or point.get(self.key.partition(".")[0]) in self.only_with

    def at(self, share: float) -> str:
        """The text at a share in [0, 1) of the axis: what a uniform number means on it."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.step is not None:
            last = round((self.high - self.low) / self.step)
            return self.every()[min(int(share * (last + 1)), last)]
        if self.is_whole and not self.is_log:
            return self.written(min(self.low + math.floor(share * (self.high - self.low + 1)), self.high))
        if self.is_whole:  # each whole number has the share of the logarithm that it rounds from
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return self.written(min(max(round(math.exp(low + share * (high - low))), self.low), self.high))
        if self.is_log:
            low, high = math.log(self.low), math.log(self.high)
            return self.written(min(max(math.exp(low + share * (high - low)), self.low), self.high))
        return self.written(self.low + share * (self.high - self.low))

    def written(self, number: float) -> str:
        """A number as a command writes it: all its digits, so that the word alone makes the same trial."""
        if self.is_whole:
            return str(round(number))
        return repr(round(number, 12)) if self.step is not None else repr(float(number))

    def count(self) -> int | None:
        """How many values it has; None where it is continuous."""
        if self.values:
            return len(self.values)
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return int(self.high - self.low) + 1 if self.is_whole else None

    def every(self) -> list[str]:
        """All its texts, in order; of a continuous one, the two ends."""
        count = self.count()
        if self.values or count is None:
            return list(self.values) or [self.written(self.low), self.written(self.high)]
        step = self.step or 1
        return [self.written(self.low + step * i) for i in range(count)]

    def ends(self) -> list[str]:
        """What is tried of it before anything starts: each value of a choice, both ends of a range."""
        return list(self.values) or list(dict.fromkeys([self.written(self.low), self.written(self.high)]))

    def as_dict(self) -> dict[str, Any]:
        plain = {key: value for key, value in asdict(self).items() if value not in (None, (), False, "")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Axis:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**given)


@dataclass(frozen=True)
class Space:
    """axes: groups first, since what applies of the others depends on them."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, axes: Sequence[Axis]) -> Space:
        return cls(tuple(sorted(axes, key=lambda axis: "." in axis.key)))

    def words(self, point: Mapping[str, str]) -> list[str]:
        """`key=value` of a point, in the order of the axes."""
        return [f"{axis.key}={point[axis.key]}" for axis in self.axes if axis.key in point]

    def group_points(self) -> list[dict[str, str]]:
        """Every combination of the groups' options: the architectures, so to speak."""
        groups = [axis for axis in self.axes if "." not in axis.key and axis.values]
        combinations = itertools.product(*(axis.values for axis in groups))
        return [dict(zip((axis.key for axis in groups), values, strict=True)) for values in combinations]

    def grid(self) -> list[dict[str, str]]:
        """Every point once, the last axis varying fastest. ConfigError for an axis without an end of values."""
        for axis in self.axes:
            if axis.count() is None:
                few = ",".join(axis.written(value) for value in _spread(axis))
                raise ConfigError(
                    f"a grid needs separate values; {axis.text or axis.key} has no end of them",
                    hint=f"Name some, like {axis.key}={few}, or take --sampler tpe.",
                )
        points = list(itertools.islice(self._points({}, self.axes), MOST_POINTS + 1))
        if len(points) > MOST_POINTS:
            raise ConfigError(f"the grid has more than {MOST_POINTS:,} points", hint="Take --sampler tpe or random.")
        return points

    def _points(self, begun: dict[str, str], rest: Sequence[Axis]) -> Iterator[dict[str, str]]:
        if not rest:
            yield begun
            return
        axis, *others = rest
        if not axis.applies(begun):
            yield from self._points(begun, others)
            return
        for text in axis.every():
            yield from self._points({**begun, axis.key: text}, others)


def _spread(axis: Axis) -> list[float]:
    """Four round numbers from one end to the other."""
    shares = [0.0, 1 / 3, 2 / 3, 1.0]
    if axis.is_log:
        numbers = [axis.low * (axis.high / axis.low) ** share for share in shares]
    else:
        numbers = [axis.low + share * (axis.high - axis.low) for share in shares]
    return [float(f"{number:.2g}") for number in numbers]
