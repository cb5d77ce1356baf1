"""Train many trials as one program.

    outcome = train_together([composed.tree for ...], Builder.for_search(), runtime)
    outcome.choice                  the chosen way, and the measurements
    outcome.trials[0].test          scores of the first tree's trial
    outcome.trials[0].weights       its state dict, as in a checkpoint

Trained together, trials drift by rounding from the same trials trained alone: over the first 10 steps their losses
differ by at most 1.4e-6 (SGD, momentum 0.9; python -m tests.bench vectorized). After 156 steps it was 5e-6 for MLPs at
learning rates up to 0.1, and for a CNN 3e-3 up to 0.02, 0.04 at 0.05 and 0.3 at 0.1, where training itself is unstable.
Test accuracy differed by 0.04 points up to 0.02, by 1.4 at 0.1. A jump comes if rounding decides on which side of 0 the
input of a ReLU is; it may come early. Dropout draws other numbers than for the trial alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dlcli.datasets.batches.examples import Data
from dlcli.errors import ConfigError
from dlcli.runtime.device import Runtime, memory_faults
from dlcli.runtime.random import unchanged_random
from dlcli.sweep.vectorized import one_by_one, together
from dlcli.sweep.vectorized.forward import FORWARDS
from dlcli.sweep.vectorized.layers import CannotStack
from dlcli.sweep.vectorized.probe import ONE_BY_ONE, Choice, choose
from dlcli.sweep.vectorized.trials import Tree, TrialResult, Trials
from dlcli.training.allow_list import Builder

WAYS = ("auto", ONE_BY_ONE, *FORWARDS)
Progress = Callable[[int, int, Sequence[TrialResult]], None]


@dataclass(frozen=True)
class Outcome:
    """trials: in the order of the trees."""

    trials: list[TrialResult]
    choice: Choice


def train_together(
    trees: Sequence[Tree],
    builder: Builder,
    runtime: Runtime,
    *,
    data: Data | None = None,
    way: str = "auto",
    progress: Progress = lambda done, total, trials: None,
) -> Outcome:
    """Train, evaluate and test the trials of composed, checked configs. Raises ConfigError if they do not fit together.

    data: the data of the trees' reader, if they were read before. way: one of WAYS; "auto" measures and chooses.
    progress: called every so many steps with the updates done, those of all trials, and the results so far; an error
    that it raises ends the training. Python's, NumPy's and torch's generators do not change.
    """
    if way not in WAYS:
        raise ConfigError(f"way={way} is not known", hint=f"Choose one of {', '.join(WAYS)}.")
    with (
        warnings.catch_warnings(),
        unchanged_random(runtime.device),
        memory_faults(lambda: "Train fewer trials together."),
    ):
        warnings.filterwarnings(
            "ignore", message="There is a performance drop"
        )  # a warning of vmap: the probe measures it
        trials = Trials(trees, builder, runtime, data)
        choice = choose(trials) if way == "auto" else Choice(way, len(trials))
        for results in _training(trials, choice.way):
            progress(sum(result.steps for result in results), trials.steps * len(trials), results)
    return Outcome(trials.results, choice)


def _training(trials: Trials, way: str) -> Iterator[list[TrialResult]]:
    if way == ONE_BY_ONE:
        return one_by_one.train(trials)
    try:
        return together.train(together.Together(trials, way))
    except CannotStack as error:
        raise ConfigError(f"way={way}: {error}", hint="way=auto chooses one that works.") from error
