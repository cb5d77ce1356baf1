"""Learning-rate schedules: pure functions of the position, so that there is nothing to save and nothing to resume wrongly.

Each takes a `Position` and its own settings and gives the share of `optimizer.lr` for the next step, in [0, 1].
`warmup` steps of linear warm-up (Goyal et al. 2017, section 2.2) stand in front of any of them; what follows is
stretched over the steps that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True, slots=True)
class Position:
    """step: steps already done; steps: of the whole run; scores: monitored scores so far, larger is better."""

    step: int
    steps: int
    steps_per_epoch: int
    scores: Sequence[float] = ()
    min_delta: float = 0.0


Schedule = Callable[[Position], float]


def warmed(at: Position, warmup: int, share: Callable[[float], float]) -> float:
    """Linear from 1/warmup to 1, then `share` of the progress in [0, 1] over the steps that remain."""
    if at.step < warmup:
        return (at.step + 1) / warmup
    return share(min(1.0, (at.step - warmup) / max(1, at.steps - warmup)))


def constant(at: Position, *, warmup: int = 0) -> float:
    return warmed(at, warmup, lambda progress: 1.0)


def cosine(at: Position, *, warmup: int = 0, final: float = 0.0) -> float:
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return warmed(at, warmup, lambda progress: final + (1 - final) * (1 + cos(pi * progress)) / 2)


def step_decay(at: Position, *, warmup: int = 0, every: int = 10, gamma: float = 0.1) -> float:
    """gamma ** (epochs done // every)."""
    epoch = at.step // at.steps_per_epoch
    return warmed(at, warmup, lambda progress: gamma ** (epoch // every))


def one_cycle(at: Position, *, warmup: int = 0, rise: float = 0.3, start: float = 0.04, final: float = 4e-6) -> float:
    """Up from `start` to 1 and down to `final`, both along half a cosine (Smith and Topin 2018).

    Equals torch's OneCycleLR with div_factor = 1 / start and final_div_factor = start / final when `steps` counts
    one less; the momentum is left alone.
    """

    def share(progress: float) -> float:
        if progress < rise:
            return start + (1 - start) * (1 - cos(pi * progress / rise)) / 2
        return final + (1 - final) * (1 + cos(pi * (progress - rise) / (1 - rise))) / 2

    return warmed(at, warmup, share)


def plateau(
    at: Position, *, lr: float, warmup: int = 0, patience: int = 10, factor: float = 0.5, floor: float = 1e-6
) -> float:
    """`factor` once for each time that more than `patience` evaluations in a row brought no better score.

    Never below `floor`, a learning rate. A pure function of the scores so far.
    """
    best, waited, cuts = float("-inf"), 0, 0
    for score in at.scores:
        if score > best + at.min_delta:
            best, waited = score, 0
        else:
            waited += 1
            if waited > patience:
                cuts, waited = cuts + 1, 0
    return warmed(at, warmup, lambda progress: max(factor**cuts, min(1.0, floor / lr)))
