"""Trains trial after trial with the ordinary loop: the baseline and fallback for the ways of training together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlcli.errors import DivergedError
from dlcli.sweep.vectorized.trials import TrialResult, Trials
from dlcli.training import build, loop

LONGEST_STRETCH = 1_000  # steps whose losses wait on the device


class OrdinaryTrial:
    """One trial's live objects, the same as in a separate run."""

    def __init__(self, trials: Trials, trial: int):
        self.trials, self.trial, self.result = trials, trial, trials.results[trial]
        tree, device = trials.trees[trial], trials.runtime.device
        self.task = trials.build_task(trial)
        trials.runtime.place(self.task)
        self.optimizers = {"model": trials.build_optimizer(trial, self.task)}
        self.averages = build.build_averages(tree, self.task)
        self.guard = loop.Guard(self.optimizers)
        self.val = build.build_eval_source(tree, trials.val_examples, trials.val_rows[trial], device)
        self.losses: list[Tensor] = []
        self.steps = loop.train(
            self.task,
            self.task.stream(trials.train_source(trial), 0),
            self.optimizers,
            lr_scale=lambda step: trials.lr_scale(trial, step),
            penalties=build.build_penalties(tree, self.task),
            clip_norm=tree["regularization"]["clip_norm"],
            autocast=trials.runtime.autocast(),
            averages=self.averages,
            guard=self.guard,
        )

    def take_steps(self, count: int) -> None:
        """Take `count` steps and add their losses to the result; stop early if the loss is not finite."""
        values = []
        try:
            for _ in range(count):
                values.append(next(self.steps).values["loss"])
            self.guard.check()
        except DivergedError:
            self.result.diverged_at = int(self.guard.bad_step.item()) or self.result.steps + len(values) + 1
        losses_S = torch.stack(values) if values else torch.empty(0)  # type: ignore[arg-type]
        self.result.extend(losses_S)

    def evaluate(self, source: object) -> dict[str, float]:
        averages, autocast = self.averages, self.trials.runtime.autocast()
        return loop.evaluate(self.task, source, autocast=autocast, averages=averages)  # type: ignore[arg-type]

    def weights(self) -> dict[str, Tensor]:
        """The weights to use: the averaged ones if there is an average."""
        average = self.averages["model"]
        with average.in_place():
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.task.state_dict().items()}


def train(trials: Trials) -> Iterator[list[TrialResult]]:
    """Train every trial to its end; yields after each stretch of steps and the evaluation at its end."""
    for trial in range(len(trials)):
        for _ in train_one(OrdinaryTrial(trials, trial)):
            yield trials.results


def train_one(ordinary: OrdinaryTrial) -> Iterator[None]:
    trials, result = ordinary.trials, ordinary.result
    while result.is_running and result.steps < trials.steps:
        due = min(result.steps - result.steps % trials.interval + trials.interval, trials.steps)
        ordinary.take_steps(min(due - result.steps, LONGEST_STRETCH))
        is_due = result.is_running and trials.is_evaluated_after(result.steps)
        if is_due and trials.note(ordinary.trial, result.steps, ordinary.evaluate(ordinary.val)):
            result.weights = ordinary.weights()
        yield
    if result.weights is not None:
        test = build.build_eval_source(trials.trees[ordinary.trial], trials.data.test, None, trials.runtime.device)
        ordinary.averages = {}
        ordinary.task.load_state_dict(result.weights)
        result.test = ordinary.evaluate(test)
