"""The numbers behind a verdict, against scipy.stats and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dlcli.evaluation.significance import (
    deviation,
    false_alarms,
    mcnemar,
    mean,
    mean_interval,
    next_interval,
    paired_t,
    welch_t,
)

# Student (1908), Biometrika 6, p. 20: hours of sleep gained by ten patients under two isomers of hyoscyamine.
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_own_example() -> None:
    found = paired_t(DEXTRO, LAEVO)
    assert found.value == pytest.approx(1.58)
    assert found.p == pytest.approx(0.00283, abs=1e-5)
    assert found.interval == pytest.approx((0.700, 2.460), abs=1e-3)
    assert not found.is_noise


def test_the_same_numbers_unpaired_are_noise() -> None:
    found = welch_t(DEXTRO, LAEVO)  # as R's t.test(sleep) says: t = -1.8608, df = 17.776, p = 0.07939
    assert found.p == pytest.approx(0.07939, abs=1e-5)
    assert found.interval == pytest.approx((-0.2055, 3.3655), abs=1e-4)
    assert found.is_noise


@pytest.mark.parametrize("seed", range(20))
def test_t_tests_equal_scipys(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 12))
    a, b = draw.normal(0.9, 0.01, size).tolist(), draw.normal(0.91, 0.03, size).tolist()
    other = draw.normal(0.91, 0.03, size + 3).tolist()
    paired, welch = stats.ttest_rel(b, a), stats.ttest_ind(other, a, equal_var=False)
    assert paired_t(a, b).p == pytest.approx(paired.pvalue, rel=1e-9)
    assert paired_t(a, b).interval == pytest.approx(tuple(paired.confidence_interval()), rel=1e-9)
    assert welch_t(a, other).p == pytest.approx(welch.pvalue, rel=1e-9)
    assert welch_t(a, other).interval == pytest.approx(tuple(welch.confidence_interval()), rel=1e-9)
    expected = stats.t.interval(0.95, size - 1, loc=np.mean(a), scale=stats.sem(a))
    assert mean_interval(a) == pytest.approx(expected, rel=1e-9)
    assert (mean(a), deviation(a)) == pytest.approx((np.mean(a), np.std(a, ddof=1)))


def test_mcnemar_equals_the_binomial_test() -> None:
    for lost, won in [(0, 0), (1, 0), (3, 9), (12, 12), (59, 16), (400, 480)]:
        expected = stats.binomtest(won, lost + won).pvalue if lost + won else 1.0
        assert mcnemar(lost, won, 1_000).p == pytest.approx(expected)


def test_the_approval_of_a_prime_minister() -> None:
    """Agresti, Categorical Data Analysis, section 10.1: of 1,600 people 150 changed to no and 86 to yes."""
    found = mcnemar(lost=150, won=86, total=1_600)
    assert found.value == pytest.approx(-0.04)
    assert found.interval == pytest.approx((-0.059, -0.021), abs=1e-3)
    assert found.p < 1e-4


def test_an_interval_holds_what_it_promises() -> None:
    """Of 2,000 experiments of five seeds each without a difference, one in twenty shows one."""
    draw = np.random.default_rng(0)
    pairs = draw.normal(0.98, 0.002, (2_000, 2, 5))
    shown = np.mean([not paired_t(a.tolist(), b.tolist()).is_noise for a, b in pairs])
    within = np.mean([low <= b[0] <= high for a, b in pairs for low, high in [next_interval(a.tolist())]])
    assert shown == pytest.approx(0.05, abs=0.015)
    assert within == pytest.approx(0.95, abs=0.015)


def test_without_spread_nobody_can_tell() -> None:
    assert paired_t([0.5, 0.5], [0.5, 0.5]) == (0.0, (0.0, 0.0), 1.0)
    one_example_worse = paired_t([350 / 359, 351 / 359, 353 / 359], [349 / 359, 350 / 359, 352 / 359])
    for found in (one_example_worse, welch_t([0.5, 0.5], [0.75, 0.75])):
        assert math.isnan(found.p) and found.is_noise and found.interval == (-math.inf, math.inf)


def test_many_comparisons_alarm_falsely() -> None:
    assert false_alarms(1) == pytest.approx(0.05)
    assert math.isclose(false_alarms(14), 0.512, abs_tol=1e-3)
