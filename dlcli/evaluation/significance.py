"""Whether a difference is more than noise: numbers in, numbers out, each formula with its source.

Student's t and the binomial distribution come from scipy.special, imported where needed: scipy.stats takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, inf, nan, sqrt
from typing import NamedTuple

LEVEL = 0.05  # a difference counts when chance alone would show one as large in at most so many of such experiments
Interval = tuple[float, float]


class Difference(NamedTuple):
    """after - before; its 95 % interval; p: the chance of one as large, either way, if there were none.

    p is nan where no chance was seen at work: a step without any spread.
    """

    value: float
    interval: Interval
    p: float

    @property
    def is_noise(self) -> bool:
        return not self.p <= LEVEL


def mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); needs two values."""
    middle = mean(values)
    return sqrt(fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of a mean of few values (Student 1908): mean +- t(n - 1) * s / sqrt(n)."""
    return _around(mean(values), deviation(values) / sqrt(len(values)), len(values) - 1)


def next_interval(values: Sequence[float]) -> Interval:
    """Where one more value of the same kind lies in 95 % of cases: mean +- t(n - 1) * s * sqrt(1 + 1 / n).

    The prediction interval of the normal distribution (Hahn 1969).
    """
    return _around(mean(values), deviation(values) * sqrt(1 + 1 / len(values)), len(values) - 1)


def paired_t(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Student's paired t-test: value i of both belongs to the same seed, so that what a seed does to both cancels."""
    gaps = [b - a for a, b in zip(before, after, strict=True)]
    return _t(mean(gaps), deviation(gaps) / sqrt(len(gaps)), len(gaps) - 1)


def welch_t(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Welch's t-test (1947) of two groups whose spreads may differ, with Satterthwaite's degrees of freedom (1946)."""
    parts = [(deviation(values) ** 2 / len(values), len(values) - 1) for values in (before, after)]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / n for part, n in parts) if variance else 1.0
    return _t(mean(after) - mean(before), sqrt(variance), df)


def mcnemar(lost: int, won: int, total: int) -> Difference:
    """McNemar's exact test (1947) of two classifiers on the same `total` examples: does one win more than it loses?

    lost, won: examples that only the first, only the second got right; of these, by chance, half are won: a binomial
    test, two-sided. The difference is one of accuracies; its interval is Wald's with half an example added to each of
    the four cells (Agresti and Min 2005, section 4), which holds its 95 % with few examples too.
    """
    from scipy.special import bdtr

    p = min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5))) if lost + won else 1.0
    gap, discordant, size = won - lost, lost + won + 1, total + 2
    half = 1.959963984540054 * sqrt(discordant - gap**2 / size) / size
    return Difference(gap / total, (max(-1.0, gap / size - half), min(1.0, gap / size + half)), p)


def false_alarms(count: int) -> float:
    """How often at least one of `count` independent comparisons shows a difference where there is none."""
    return 1 - (1 - LEVEL) ** count


def _t(value: float, error: float, df: float) -> Difference:
    """A difference with its standard error. No spread tells nothing: accuracies are counts of examples, and a few seeds
    that all lose the same number are not rare."""
    if error <= 1e-9 * abs(value):
        return Difference(value, (-inf, inf), nan) if value else Difference(0.0, (0.0, 0.0), 1.0)
    from scipy.special import stdtr

    return Difference(value, _around(value, error, df), 2 * float(stdtr(df, -abs(value / error))))


def _around(middle: float, error: float, df: float) -> Interval:
    if df <= 0:
        return -inf, inf
    from scipy.special import stdtrit

    half = float(stdtrit(df, 1 - LEVEL / 2)) * error
    return middle - half, middle + half
