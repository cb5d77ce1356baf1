"""Learning-rate schedules: pure functions of the position, so there is nothing to save or to resume wrongly.

Each takes a `Position` and its own settings and gives the share of `optimizer.lr` for the next step, in [0, 1].
`warmup` steps of linear warm-up (Goyal et al. 2017, section 2.2) come before any of them, up to its first value;
below 1 it is a share of all steps, for data of unknown size. cosine, one_cycle and triangle are
stretched over the steps that remain; step_decay and plateau count epochs and evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi
from typing import NamedTuple


class Position(NamedTuple):
    """step: steps already done; steps: of the whole run; scores: monitored so far, larger is better, None for NaN."""

    step: int
    steps: int
    steps_per_epoch: int
    scores: Sequence[float | None] = ()
    min_delta: float = 0.0


Schedule = Callable[[Position], float]


def warm_steps(at: Position, warmup: float) -> int:
    """`warmup` itself, or below 1 that share of the run's steps."""
    return int(warmup * at.steps) if warmup < 1 else int(warmup)


def warm(at: Position, steps: int) -> float:
    """Linear from 1/steps to 1, in the first `steps`."""
    return (at.step + 1) / steps


def progress(at: Position, steps: int) -> float:
    """Position in the steps after a warm-up of `steps`, in [0, 1]."""
    return min(1.0, (at.step - steps) / max(1, at.steps - steps))


def constant(at: Position, *, warmup: float = 0) -> float:
    steps = warm_steps(at, warmup)
    return warm(at, steps) if at.step < steps else 1.0


def cosine(at: Position, *, warmup: float = 0, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    steps = warm_steps(at, warmup)
    if at.step < steps:
        return warm(at, steps)
    return final + (1 - final) * (1 + cos(pi * progress(at, steps))) / 2


def step_decay(at: Position, *, warmup: float = 0, every: int = 10, gamma: float = 0.1) -> float:
    """gamma ** (epochs done since the warm-up // every). Counts epochs: a time limit does not stretch it."""
    steps = warm_steps(at, warmup)
    if at.step < steps:
        return warm(at, steps)
    return gamma ** ((at.step - steps) // at.steps_per_epoch // every)


def one_cycle(
    at: Position, *, warmup: float = 0, pct_start: float = 0.3, start: float = 0.04, final: float = 4e-6
) -> float:
    """Up from `start` to 1 and down to `final`, both along half a cosine (Smith and Topin 2018).

    torch's OneCycleLR with div_factor = 1 / start and final_div_factor = start / final, over one step more; the
    momentum does not change.
    """
    steps = warm_steps(at, warmup)
    if at.step < steps:
        return warm(at, steps) * start
    share = progress(at, steps)
    if share < pct_start:
        return start + (1 - start) * (1 - cos(pi * share / pct_start)) / 2
    return final + (1 - final) * (1 + cos(pi * (share - pct_start) / (1 - pct_start))) / 2


def triangle(
    at: Position, *, warmup: float = 0, pct_start: float = 0.25, start: float = 0.2, final: float = 0.0
) -> float:
    """A straight line up from `start` to 1 and another down to `final` (Smith 2017); with a `rise` of 0 only down."""
    steps = warm_steps(at, warmup)
    if at.step < steps:
        return warm(at, steps) * (start if pct_start else 1.0)
    share = progress(at, steps)
    if share < pct_start:
        return start + (1 - start) * share / pct_start
    return final + (1 - final) * (1 - share) / (1 - pct_start)


def plateau(
    at: Position, *, lr: float, warmup: float = 0, patience: int = 10, factor: float = 0.5, floor: float = 1e-6
) -> float:
    """Multiplied by `factor` each time that more than `patience` evaluations in a row brought no better score.

    Never below `floor`, a learning rate. A pure function of the scores so far.
    """
    steps = warm_steps(at, warmup)
    if at.step < steps:
        return warm(at, steps)
    best, waited, cuts = float("-inf"), 0, 0
    for score in at.scores:
        if score is not None and score > best + at.min_delta:
            best, waited = score, 0
        else:
            waited += 1
            if waited > patience:
                cuts, waited = cuts + 1, 0
    return max(factor**cuts, min(1.0, floor / lr))
