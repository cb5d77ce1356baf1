"""The common and the separate parts of one program's trials: networks, optimizers, schedules, rows, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data, Examples, LabelledImages
from dlcli.datasets.batches.pixels import Pixels
from dlcli.datasets.batches.residency import choose_residency, num_bytes
from dlcli.datasets.batches.source import TrainSource
from dlcli.errors import ConfigError
from dlcli.optimizers.schedules import Position
from dlcli.runtime.device import Runtime
from dlcli.runtime.random import seed_everything
from dlcli.sweep.vectorized.batches import ExampleBatches, TrainBatches
from dlcli.sweep.vectorized.compatible import can_train_together
from dlcli.tasks.classification import Classification
from dlcli.training import build, checks
from dlcli.training.allow_list import Builder
from dlcli.training.early_stopping import best_index, should_stop

Tree = dict[str, Any]


@dataclass
class TrialResult:
    """One trial. evaluations: (step, epoch, scores on validation) of each; scores: monitored ones, larger is better;
    best: the evaluation to which weights and test belong.

    losses: (steps,) float32, of each step. weights: an ordinary state dict of the task, on the CPU; None if the trial
    diverged before its first evaluation. diverged_at: the step whose loss was not finite and whose update was not made;
    stopped_at: the step at which it stopped early.
    """

    seed: int
    steps: int = 0
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    best: int | None = None
    weights: dict[str, Tensor] | None = None
    test: dict[str, float] = field(default_factory=dict)
    diverged_at: int | None = None
    stopped_at: int | None = None

    @property
    def is_running(self) -> bool:
        return self.diverged_at is None and self.stopped_at is None

    def extend(self, losses_S: Tensor) -> None:
        """Add the losses of further steps, without that of the update that was not made."""
        end = len(losses_S) if self.diverged_at is None else self.diverged_at - 1 - self.steps
        self.losses = torch.cat([self.losses, losses_S[:end].float().cpu()])
        self.steps = len(self.losses)


class Trials:
    """trees: composed configs of trials that can be trained together. Raises ConfigError if they cannot."""

    def __init__(self, trees: Sequence[Tree], builder: Builder, runtime: Runtime, data: Data | None = None):
        self.trees, self.builder, self.runtime, tree = list(trees), builder, runtime, trees[0]
        if reason := can_train_together(trees):
            raise ConfigError(f"these trials cannot be trained together: {reason}", hint="Train them one by one.")
        for own in trees:
            builder.check(own)
        self.data = data or build.build_data(builder, tree)
        checks.check_data(self.data, tree)
        self._check_resident()
        splits = [build.split_training(own, self.data) for own in trees]
        self.train_rows, self.val_rows = [own[0] for own in splits], [own[2] for own in splits]
        self.val_examples = splits[0][1]
        self.schedules = [build.build_schedule(builder, own) for own in trees]
        self.results = [TrialResult(own["seed"]) for own in trees]
        self.batch_size: int = tree["dataset"]["batch_size"]
        self.steps_per_epoch = -(-len(self.train_rows[0]) // self.batch_size)
        self.steps: int = tree["trainer"]["max_steps"] or tree["trainer"]["epochs"] * self.steps_per_epoch
        self.interval: int = tree["trainer"]["eval_every"] or self.steps_per_epoch
        self.monitor: str = tree["trainer"]["monitor"].removeprefix("val/")
        self.sign = 1 if tree["task"]["facts"]["scores"][self.monitor] == "max" else -1
        self._placed: dict[int, ExampleBatches] = {}

    def __len__(self) -> int:
        return len(self.trees)

    def _check_resident(self) -> None:
        settings = self.trees[0]["dataset"]
        for examples in (self.data.train, self.data.test):
            size, device = num_bytes(examples), self.runtime.device
            is_resident, why = choose_residency(size, settings["in_memory"], settings["num_workers"], device)
            if not is_resident:
                message = f"these trials cannot be trained together: their images are not held in memory ({why})"
                raise ConfigError(message, hint="Train them one by one, or with dataset.in_memory=true.")

    # ------------------------------------------------------------------------------------------------------ the objects

    @cached_property
    def fresh_tasks(self) -> list[Classification]:
        """The networks of all trials, to be stacked; they are not trained themselves."""
        return [self.build_task(trial) for trial in range(len(self))]

    def build_task(self, trial: int) -> Classification:
        """The same as in a separate run: initialised by its seed, on the CPU; the generators go on from there."""
        seed_everything(self.trees[trial]["seed"])
        task = build.build_task(self.builder, self.trees[trial])
        build.prepare_networks(task, self.trees[trial], self.data)
        return task  # type: ignore[return-value]

    def build_optimizer(self, trial: int, task: Classification) -> torch.optim.Optimizer:
        return build.build_optimizers(self.builder, self.trees[trial], task, self.runtime)["model"]

    def train_source(self, trial: int) -> TrainSource:
        rows, device = self.train_rows[trial], self.runtime.device
        return build.build_train_source(self.builder, self.trees[trial], self.data.train, rows, device)[0]

    def train_batches(self) -> TrainBatches:
        return TrainBatches(
            self.placed(self.data.train),
            self.train_rows,
            [tree["seed"] for tree in self.trees],
            batch_size=self.batch_size,
            augment=build.build_augmentation(self.builder, self.trees[0]),
        )

    def placed(self, examples: Examples) -> ExampleBatches:
        """A split on the device; moved only once."""
        assert isinstance(examples, LabelledImages), "can_train_together accepts images only"
        if id(examples) not in self._placed:
            settings, device = self.trees[0]["dataset"], self.runtime.device
            channels = settings["image_shape"][0]
            pixels = Pixels(settings["mean"], settings["std"], channels=channels, device=device)
            self._placed[id(examples)] = ExampleBatches(examples, pixels, device)
        return self._placed[id(examples)]

    # ------------------------------------------------------------------------------------------------------ the numbers

    def per_trial(self, group: str, key: str, missing: float = 0.0) -> Tensor:
        """A setting as (T,) float32 on the device; `missing` replaces null."""
        values = [tree[group][key] for tree in self.trees]
        return torch.tensor(
            [missing if v is None else v for v in values], dtype=torch.float32, device=self.runtime.device
        )

    def lr_scale(self, trial: int, step: int) -> float:
        """The schedule's share of optimizer.lr for the step after `step`."""
        scores, min_delta = self.results[trial].scores, self._early_stopping(trial)["min_delta"]
        return self.schedules[trial](Position(step, self.steps, self.steps_per_epoch, scores, min_delta))

    def lr_scales(self, first_step: int, count: int) -> Tensor:
        """(S, T) float64: the schedules' shares between two evaluations."""
        steps = range(first_step, first_step + count)
        rows = [[self.lr_scale(trial, step) for trial in range(len(self))] for step in steps]
        return torch.tensor(rows, dtype=torch.float64)

    def _early_stopping(self, trial: int) -> Mapping[str, Any]:
        return self.trees[trial]["regularization"]["early_stopping"]

    def is_evaluated_after(self, step: int) -> bool:
        return step % self.interval == 0 or step == self.steps

    def note(self, trial: int, step: int, scores: Mapping[str, float]) -> bool:
        """Record an evaluation; returns whether it is the best so far."""
        result, stopping = self.results[trial], self._early_stopping(trial)
        epoch = max(1, -(-step // self.steps_per_epoch))
        result.evaluations.append({"step": step, "epoch": epoch, "scores": dict(scores)})
        score = self.sign * scores[self.monitor]
        result.scores.append(score if isfinite(score) else None)
        losses = [evaluation["scores"].get("loss") for evaluation in result.evaluations]
        is_best = best_index(result.scores, losses) == len(result.scores) - 1
        if is_best:
            result.best = len(result.scores) - 1
        if step < self.steps and should_stop(
            result.scores, patience=stopping["patience"], min_delta=stopping["min_delta"]
        ):
            result.stopped_at = step
        return is_best
