"""Finds the fastest way for these trials on this machine: measured on a few real steps, never guessed.

On a CPU, the product of many small matrices makes an MLP much faster and a CNN slower; other devices differ.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Batch
from dlcli.errors import printable
from dlcli.runtime.random import unchanged_random
from dlcli.sweep.vectorized.forward import FORWARDS, set_mode
from dlcli.sweep.vectorized.layers import CannotStack
from dlcli.sweep.vectorized.one_by_one import OrdinaryTrial
from dlcli.sweep.vectorized.together import Together
from dlcli.sweep.vectorized.trials import TrialResult, Trials
from dlcli.training import build

ONE_BY_ONE = "one by one"
ROUNDS = 5
LEAST_STEPS = 100  # of a training; a shorter one ends before a probe would pay
MOST_STEPS, MOST_S = 10, 0.05  # measured at a time, if they are at most a hundredth of the training
WORTH = 0.95  # share of the time of training one by one, which is exact: an inexact way must be below it
HOPELESS = 1.3  # times the best so far: a slower way is not measured any further
TOLERANCES = {"fp32": (1e-4, 1e-2), "tf32": (1e-2, 5e-2), "bf16": (2e-2, 1e-1)}  # of loss and gradient, relative


class Stepper(NamedTuple):
    """take: takes so many steps. share: one of them, multiplied by it, is a step of all trials."""

    take: Callable[[int], object]
    share: int


@dataclass
class Choice:
    """way: the chosen one; step_s: way -> median seconds for one step of all trials; refused: way -> why not."""

    way: str
    num_trials: int = 0
    clock: str = ""
    step_s: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        measured = [f"{way} {1e3 * s:.2f} ms" for way, s in sorted(self.step_s.items(), key=lambda item: item[1])]
        message = f"{self.way}: a step of {self.num_trials} trials takes {', '.join(measured)} ({self.clock})"
        return "; ".join(
            [message if measured else self.way, *(f"{way} not: {why}" for way, why in self.refused.items())]
        )


def choose(trials: Trials) -> Choice:
    """Measure each way on a few steps and choose the fastest. Results and random generators do not change."""
    clock, clock_name = clock_of(trials.runtime.device)
    choice, results = Choice(ONE_BY_ONE, len(trials), clock_name), trials.results
    if trials.steps < LEAST_STEPS or len(trials) == 1:
        return choice
    trials.results = [TrialResult(result.seed) for result in results]
    try:
        with unchanged_random(trials.runtime.device):
            most_steps = min(MOST_STEPS, trials.steps // 100)
            choice.step_s = measure(steppers(trials, choice.refused), clock, most_steps)
    finally:
        trials.results = results
    choice.way = min(choice.step_s, key=lambda way: choice.step_s[way] * (WORTH if way == ONE_BY_ONE else 1.0))
    return choice


def measure(found: dict[str, Stepper], clock: Callable[[], float], most_steps: int) -> dict[str, float]:
    """way -> median seconds for one step of all trials; the ways take turns, and a hopeless one drops out."""
    times: dict[str, list[float]] = {way: [] for way in found}
    for number in range(ROUNDS + 1):
        for way, stepper in found.items():
            own_s = min(times[way], default=MOST_S) / stepper.share
            count = max(1, min(most_steps * stepper.share, int(MOST_S / own_s)))
            start = clock()
            stepper.take(count)
            times[way].append((clock() - start) / count * stepper.share)
        if number == 0:  # warms up
            continue
        best = min(min(own) for own in times.values())
        found = {way: stepper for way, stepper in found.items() if min(times[way]) <= HOPELESS * best}
    return {way: statistics.median(own[1:]) for way, own in times.items()}


def clock_of(device: torch.device) -> tuple[Callable[[], float], str]:
    """Seconds: of one thread's work on a CPU, which other programs do not lengthen; otherwise of wall-clock time."""
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised, "wall time"
    if torch.get_num_threads() == 1:
        return time.process_time, "CPU time"
    return time.perf_counter, "wall time"


# -------------------------------------------------------------------------------------------------------- what is timed


def steppers(trials: Trials, refused: dict[str, str]) -> dict[str, Stepper]:
    """The ways that work for this network, each tried once; the others go into `refused`, with the reason."""
    found: dict[str, Stepper] = {ONE_BY_ONE: ordinary_stepper(trials)}
    for way in FORWARDS:
        try:
            together = Together(trials, way)
            if why := disagreement(together):
                refused[way] = why
            else:
                found[way] = Stepper(together.take_steps, 1)
        except CannotStack as error:
            refused[way] = str(error)
        except torch.OutOfMemoryError:
            refused[way] = f"{len(trials)} trials do not fit in the device's memory"
        except (
            RuntimeError,
            NotImplementedError,
            ValueError,
        ) as error:  # from a network that was written for one trial
            refused[way] = f"the network does not run this way: {printable(str(error).splitlines()[0])}"
    return found


def ordinary_stepper(trials: Trials) -> Stepper:
    """Takes steps of the trial that is least likely to diverge."""
    trial = min(range(len(trials)), key=lambda t: trials.trees[t]["optimizer"]["lr"])
    ordinary = OrdinaryTrial(trials, trial)

    def take(count: int) -> None:
        nonlocal ordinary
        if not ordinary.result.is_running:
            trials.results[trial] = TrialResult(ordinary.result.seed)
            ordinary = OrdinaryTrial(trials, trial)
        ordinary.take_steps(count)

    return Stepper(take, len(trials))


def disagreement(together: Together) -> str | None:
    """None if loss and gradients equal those of the networks alone, on a first batch without dropout.

    This finds networks whose code mixes the channels of the trials, or assumes their number.
    """
    images, labels = next(iter(together.trials.train_batches()))
    set_mode(together.forward.network, True, dropout=False)
    loss_T, gradients = together.gradients(images, labels)
    by_loss, by_gradient = TOLERANCES[together.runtime.precision]
    for trial in {0, len(together.tasks) - 1}:
        own = (images, labels) if labels.dim() == 1 else (images[:, trial], labels[:, trial])
        loss, expected = alone_gradients(together, trial, *own)
        if not (loss_T[trial] - loss).abs() <= by_loss * loss.abs():
            return f"the loss of trial {trial} is {loss_T[trial].item():.6g}, alone {loss.item():.6g}"
        if gradients.keys() != expected.keys():
            return f"it has gradients of {len(gradients)} parameters, alone of {len(expected)}"
        # The whole gradient: that of one parameter may be 0 except for rounding, such as a bias before a batch norm.
        off = [(gradients[name][trial] - gradient).norm() for name, gradient in expected.items()]
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        if not torch.stack(off).norm() <= by_gradient * norm:
            return f"the gradient of trial {trial} differs from the one it has alone"
    return None


def alone_gradients(together: Together, trial: int, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    task = deepcopy(together.tasks[trial]).to(images.device)
    set_mode(task, True, dropout=False)
    with together.runtime.autocast()():
        loss, _ = task.loss(Batch(images, labels, labels), "model")
        penalties = build.build_penalties(together.trials.trees[trial], task)
        total = loss + sum(penalty(task.model) for penalty in penalties)
    named = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return loss.detach(), {n: g for n, g in zip(named, found, strict=True) if g is not None}
