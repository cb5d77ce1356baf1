"""Scores of a whole set, such as BLEU: not means over its examples, but computed from what each of them adds.

The set is the sample that has each example once; other samples, for an interval
(dlcli/evaluation/bootstrap.py), have some examples several times and others not at all. Both go through the same
function.

Letters: N examples, R samples, K numbers that an example adds under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Statistics(Protocol):
    """The contributions of N held-out examples to the scores of their set."""

    @property
    def means(self) -> Mapping[str, Tensor]:
        """The scores that are means over the examples: name -> (N,) float64."""

    @property
    def num_samples(self) -> int:
        """Number of samples for an interval; fewer if each one is expensive."""

    def __len__(self) -> int: ...

    def scores(self) -> dict[str, float]:
        """All scores of the set itself."""

    def resampled(self, counts_RN: Tensor) -> Iterator[dict[str, float]]:
        """The scores of each sample that are not means. counts_RN: float64, how often it has each example."""


@dataclass(frozen=True)
class Sums:
    """Scores that are computed from sums over the examples.

    parts: name -> (N,) or (N, K) float64; score: computes a score from their sums, name -> () or (K,).
    others: scores without a known share of each example; they get no interval.
    """

    parts: Mapping[str, Tensor]
    score: Callable[[Mapping[str, Tensor]], dict[str, float]]
    means: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    num_samples: int = 1000

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def scores(self) -> dict[str, float]:
        of_the_set = self.score({name: part.sum(0) for name, part in self.parts.items()})
        return of_the_set | {name: value_N.mean().item() for name, value_N in self.means.items()} | dict(self.others)

    def resampled(self, counts_RN: Tensor) -> Iterator[dict[str, float]]:
        sums = {name: counts_RN @ part for name, part in self.parts.items()}
        for r in range(len(counts_RN)):
            yield self.score({name: sums_R[r] for name, sums_R in sums.items()})
