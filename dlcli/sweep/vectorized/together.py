"""The training step of T trials at once, from images to updates, and their evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from math import inf

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Examples
from dlcli.runtime.random import seed_everything
from dlcli.sweep.vectorized.forward import FORWARDS, AsModel
from dlcli.sweep.vectorized.stack import Stack, shaped
from dlcli.sweep.vectorized.trials import TrialResult, Trials
from dlcli.sweep.vectorized.update import build_rule

LONGEST_STRETCH = 1_000  # steps between two looks at the device


class Together:
    """The live state of all trials. way: one of forward.FORWARDS.

    alive_T: (T,) bool on the device; a trial whose loss is not finite is no longer updated. bad_step_T: that step.
    """

    def __init__(self, trials: Trials, way: str):
        self.trials, self.runtime, device = trials, trials.runtime, trials.runtime.device
        self.tasks = trials.fresh_tasks
        self.stack = Stack([task.model for task in self.tasks], device)
        self.forward = FORWARDS[way](self.stack)
        self.judge = deepcopy(self.tasks[0])
        self.judge.model = AsModel(self.forward, len(trials), trials.trees[0]["dataset"]["image_shape"][0])
        optimizers = [trials.build_optimizer(trial, task) for trial, task in enumerate(self.tasks)]
        self.rule = build_rule(self.stack.parameters, optimizers)
        self.smoothing_T = trials.per_trial("task", "label_smoothing")
        self.l1_T = trials.per_trial("regularization", "l1")
        self.has_l1 = bool(self.l1_T.any())
        clip_T, self.ema_T = (
            trials.per_trial("regularization", "clip_norm", inf),
            trials.per_trial("regularization", "ema"),
        )
        self.clip_T = None if clip_T.isinf().all() else clip_T
        self.shadow = self.stack.copy(self.stack.parameters) if self.ema_T.any() else None
        self.alive_T = torch.ones(len(trials), dtype=torch.bool, device=device)
        self.bad_step_T = torch.zeros(len(trials), dtype=torch.int64, device=device)
        self.is_masking = device.type != "cpu"  # on a CPU it costs nothing to read whether there is anything to mask
        self.step = 0
        self.ema_rows = torch.empty(0)
        self.batches = iter(trials.train_batches())
        seed_everything(
            trials.trees[0]["seed"]
        )  # the draws of dropout do not depend on what was built and probed before

    # -------------------------------------------------------------------------------------------------------- the step

    def take_steps(self, count: int) -> Tensor:
        """Takes `count` steps; their losses (S, T) stay on the device. Nothing here waits for a GPU."""
        self.rule.prepare(self.trials.lr_scales(self.step, count), self.step)
        if self.shadow is not None:
            n_S1 = torch.arange(self.step + 1, self.step + count + 1, device=self.ema_T.device)[:, None]
            self.ema_rows = 1 - torch.minimum(self.ema_T, (1 + n_S1) / (10 + n_S1))  # the same as in averaging.Average
        self.forward.network.train()
        return torch.stack([self._step(row, *next(self.batches)) for row in range(count)])

    def _step(self, row: int, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (T,), before the update."""
        loss_T, gradients = self.gradients(images, labels)
        self.step += 1
        if self.clip_T is not None:
            clip(gradients, self.clip_T)
        if self.is_masking:
            for name, gradient in gradients.items():
                gradients[name] = torch.where(shaped(self.alive_T, gradient), gradient, 0.0)
        self.rule.update(row, gradients, self.alive_T if self.is_masking else None)
        if self.shadow is not None:
            for name, average in self.shadow.items():
                average.lerp_(self.stack.parameters[name].detach(), shaped(self.ema_rows[row], average))
        return loss_T

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (T,), and the gradient of each with respect to its trial's parameters, name -> (T, ...)."""
        with self.runtime.autocast()():
            logits_BTK = self.forward(images)
            loss_T = losses(logits_BTK, labels, self.smoothing_T)
        total_T = loss_T + self.l1_T * self._absolute_weights() if self.has_l1 else loss_T
        named = self.stack.parameters
        # No trial's loss depends on another's parameters: the gradient of the sum holds each trial's own.
        found = torch.autograd.grad(total_T.sum(), list(named.values()), allow_unused=True)
        self._admit(total_T.detach())
        return loss_T.detach(), unaliased({n: g for n, g in zip(named, found, strict=True) if g is not None})

    def _absolute_weights(self) -> Tensor:
        """(T,): the sum of |w| over the weights that regularization.penalties.L1 counts."""
        weights = [p for p in self.stack.parameters.values() if p.dim() > 2]
        return torch.stack([p.abs().flatten(1).sum(1) for p in weights]).sum(0)

    def _admit(self, total_T: Tensor) -> None:
        """Note the trials whose loss is not finite; they do not take part in this step's update."""
        is_finite_T = torch.isfinite(total_T)
        if not self.is_masking:
            if is_finite_T.all():
                return
            self.is_masking = True
        self.bad_step_T = torch.where(self.alive_T & ~is_finite_T, self.step + 1, self.bad_step_T)
        self.alive_T = self.alive_T & is_finite_T

    # -------------------------------------------------------------------------------------------------- the evaluation

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the trials have the weights to use: their averages, if one of them asks for it."""
        return nullcontext() if self.shadow is None else self.stack.using(self.shadow)

    @torch.no_grad()
    def evaluate(self, examples: Examples, rows: Tensor) -> list[dict[str, float]]:
        """Each trial's exact means over `rows`, (N,) or (N, T) int64, like `Task.evaluate`."""
        trials, count = self.trials, len(rows)
        chosen = trials.trees[0]["dataset"]["eval_batch_size"]
        size = max(trials.batch_size, (1_000 if chosen == "auto" else chosen) // len(trials))
        sums: dict[str, Tensor] = {}
        self.forward.network.eval()
        for images, labels in trials.placed(examples).take(rows.to(self.runtime.device), size):
            with self.runtime.autocast()():
                logits_BTK = self.judge.answer(images.flatten(1, 2) if images.dim() == 5 else images)
                found = self.judge.measure(logits_BTK.flatten(0, 1), per_trial(labels, logits_BTK).flatten())
            for name, value_N in found.items():
                sums[name] = sums.get(name, 0) + value_N.view(logits_BTK.shape[:2]).double().sum(0)
        means = {name: (sum_T / count).tolist() for name, sum_T in sums.items()}
        return [{name: mean_T[trial] for name, mean_T in means.items()} for trial in range(len(trials))]


def losses(logits_BTK: Tensor, labels: Tensor, smoothing_T: Tensor) -> Tensor:
    """(T,): the mean cross-entropy of the batch, with each trial's own label smoothing, as in F.cross_entropy."""
    log_BTK = logits_BTK.float().log_softmax(2)
    right_BT = log_BTK.gather(2, per_trial(labels, log_BTK).unsqueeze(2)).squeeze(2)
    return -torch.lerp(right_BT, log_BTK.mean(2), smoothing_T).mean(0)


def per_trial(labels: Tensor, logits_BTK: Tensor) -> Tensor:
    """(B,) or (B, T) -> (B, T)."""
    return labels if labels.dim() == 2 else labels[:, None].expand(logits_BTK.shape[:2])


def clip(gradients: Mapping[str, Tensor], most_T: Tensor) -> None:
    """Clip each trial's gradient to its largest norm, in place, as nn.utils.clip_grad_norm_ does."""
    norm_T = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    factor_T = (most_T / (norm_T + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(shaped(factor_T, gradient))


def unaliased(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients that can be changed in place: autograd may give one tensor to two parameters, or an expanded one."""
    seen: set[int] = set()
    for name, gradient in gradients.items():
        if gradient.data_ptr() in seen or not gradient.is_contiguous():
            gradients[name] = gradient.clone(memory_format=torch.contiguous_format)
        seen.add(gradient.data_ptr())
    return gradients


# --------------------------------------------------------------------------------------------------------- the training


def train(together: Together) -> Iterator[list[TrialResult]]:
    """Train to the end, or until no trial is left; yields after each stretch of steps and the evaluation at its end."""
    trials = together.trials
    val_rows, best = one_or_all(trials.val_rows), together.stack.copy()
    while together.step < trials.steps and any(result.is_running for result in trials.results):
        due = min(together.step - together.step % trials.interval + trials.interval, trials.steps)
        settle(together, together.take_steps(min(due - together.step, LONGEST_STRETCH)))
        if trials.is_evaluated_after(together.step):
            with together.averaged():
                is_best_T = evaluate_all(together, val_rows)
                together.stack.keep(best, is_best_T)
        yield trials.results
    finish(together, best)


def settle(together: Together, losses_ST: Tensor) -> None:
    """Write a stretch into the results of the trials that were running. Waits for the device."""
    bad_steps, losses_ST = together.bad_step_T.tolist(), losses_ST.cpu()
    for trial, result in enumerate(together.trials.results):
        if result.is_running:
            result.diverged_at = bad_steps[trial] or None
            result.extend(losses_ST[:, trial])


def evaluate_all(together: Together, val_rows: Tensor) -> Tensor:
    """Scores of the running trials on validation, recorded; which of them are their best, (T,) bool."""
    trials = together.trials
    scores = together.evaluate(trials.val_examples, val_rows)
    is_best = [
        result.is_running and trials.note(trial, together.step, scores[trial])
        for trial, result in enumerate(trials.results)
    ]
    return torch.tensor(is_best, device=together.alive_T.device)


def finish(together: Together, best: Mapping[str, Tensor]) -> None:
    """Each trial's best weights, as an ordinary state dict, and their scores on the test split."""
    trials, test = together.trials, together.trials.data.test
    with together.stack.using(best):
        scores = together.evaluate(test, torch.arange(len(test)))
    for trial, result in enumerate(trials.results):
        if result.best is not None:
            result.weights = together.stack.unstack(best, trial, prefix="model.")
            result.test = scores[trial]


def one_or_all(rows: Sequence[Tensor]) -> Tensor:
    """(N,) if all trials have the same rows, otherwise (N, T)."""
    return rows[0] if all(torch.equal(rows[0], own) for own in rows) else torch.stack(list(rows), 1)
