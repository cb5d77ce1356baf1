"""The length of a training, in steps or by the clock, and the share of the learning rate at each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dlcli.optimizers.schedules import Position, Schedule
from dlcli.runtime.ranks import Ranks, SingleProcess

FIRST_GUESS = 1_000  # epochs assumed for a time limit until a step has been timed


class Plan:
    """steps: of the whole run, None when only the clock decides; limit_s: seconds, None for no limit.

    before_s: seconds of training before this process; reserve_s: kept back for the last evaluation.
    """

    def __init__(
        self,
        *,
        steps: int | None,
        limit_s: float | None,
        steps_per_epoch: int,
        min_delta: float,
        before_s: float,
        ranks: SingleProcess | Ranks,
    ):
        self.steps, self.limit_s, self.steps_per_epoch, self.min_delta = steps, limit_s, steps_per_epoch, min_delta
        self.reserve_s = 0.0
        self._started = time.monotonic() - before_s
        self._ranks = ranks
        self._agreed_s = before_s

    def tick(self) -> None:
        """Between steps: what the clock says, agreed upon where several ranks go by it."""
        if self.limit_s is not None and self._ranks.world_size > 1:
            self._agreed_s = self._ranks.agree([self.elapsed_s()])[0]

    def _clock_s(self) -> float:
        return self.elapsed_s() if self._ranks.world_size == 1 else self._agreed_s

    def elapsed_s(self) -> float:
        """The seconds of training, including earlier processes, without the pauses between them."""
        return time.monotonic() - self._started

    def is_done(self, step: int) -> bool:
        """Return whether all steps are done, or another step and its evaluation would not fit into the time."""
        is_late = self.limit_s is not None and self._clock_s() + self.reserve_s >= self.limit_s
        return is_late or (self.steps is not None and step >= self.steps)

    def stretched_steps(self, step: int) -> int:
        """Estimate the steps of the whole run that fit into the time limit at the speed so far."""
        share = self._clock_s() / (self.limit_s or 1.0)
        fitting = int(step / share) if step and share > 0 else self.steps_per_epoch * FIRST_GUESS
        return max(step + 1, min(fitting, self.steps or fitting))

    def long_warm_up(self, warmup: float) -> str | None:
        """Return a warning for a warm-up that takes half of the run or more."""
        if self.steps is None or warmup < 1 or warmup < self.steps / 2:
            return None
        rising = min(int(warmup), self.steps)
        return f"{rising} of the run's {self.steps} steps are warm-up; a share fits any length: schedule.warmup=0.1"

    def lr_scale(self, schedule: Schedule, scores: Sequence[float | None]) -> Callable[[int], float]:
        """step -> share of optimizer.lr for the step after it. `scores` may grow meanwhile."""
        steps, per_epoch, min_delta = self.steps or 1, self.steps_per_epoch, self.min_delta
        if self.limit_s is not None:
            return lambda step: schedule(Position(step, self.stretched_steps(step), per_epoch, scores, min_delta))
        return lambda step: schedule(Position(step, steps, per_epoch, scores, min_delta))
