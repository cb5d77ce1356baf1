"""The training loop, from top to bottom. It works on tensors only: it knows no configs, files or screens.

for done in train(task, batches, optimizers, ...):      # the loop pauses after a complete step
    ...evaluate, save, stop: the caller does these between steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import reduce
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dlcli.errors import DivergedError
from dlcli.optimizers.averaging import Average, NoAverage
from dlcli.optimizers.freezing import Freezing
from dlcli.optimizers.stepping import bare_step
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.tasks.task import Answers, Task, Value, Values

SINGLE_PROCESS = SingleProcess()
SMALLEST_SCALE = 2.0**-10  # scale of the gradient scaler, which begins at 2^16 and halves at each overflow


class StepDone(NamedTuple):
    """The result of a step. step: updates done so far; values: from the task; weight: of its batch in means."""

    step: int
    values: Values
    weight: int


def train(
    task: Task,
    batches: Iterator[list[Any]],
    optimizers: Mapping[str, torch.optim.Optimizer],
    *,
    first_step: int = 0,
    lr_scale: Callable[[int], float] = lambda step: 1.0,
    penalties: Sequence[Callable[[nn.Module], Tensor]] = (),
    clip_norm: float | None = None,
    autocast: Callable[[], Any] = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    averages: Mapping[str, Average | NoAverage] | None = None,
    guard: Guard | None = None,
    ranks: SingleProcess | Ranks = SINGLE_PROCESS,
) -> Iterator[StepDone]:
    """Update every phase of the task once per step, for ever; yields after each step.

    batches: the micro-batches of each step, from step `first_step` on; each rank has its own. A step's gradient is that
    of its whole batch, over all ranks: a micro-batch counts by its `weight_of`.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    guard = guard or Guard(optimizers, scaler)
    is_scaled = scaler.is_enabled()
    phases = [Phase(name, task, optimizers[name], (averages or {}).get(name, NoAverage())) for name in task.phases]
    task.train()
    for step in count(first_step + 1):
        micro_batches = next(batches)
        weight = sum([weight_of(batch) for batch in micro_batches])
        scale = lr_scale(step - 1)
        values: Values = {}
        for phase in phases:
            phase.start(scale, step - 1)
            losses: list[Tensor] = []
            for batch in micro_batches:
                with autocast():
                    loss, new = task.loss(batch, phase.name)
                    for penalty in penalties:
                        loss = loss + penalty(phase.network)
                if len(micro_batches) == 1:
                    values.update(new)
                else:
                    share = weight_of(batch) / weight
                    add_values(values, new, share)
                    loss = loss * share
                losses.append(loss.detach())
                loss = ranks.weigh(loss, weight)
                (scaler.scale(loss) if is_scaled else loss).backward()
            step_loss = ranks.average_gradients(phase.parameters, reduce(torch.add, losses), weight)
            guard.admit(step_loss, step, scale)
            if clip_norm is not None:
                scaler.unscale_(phase.optimizer)
                values[f"grad_norm/{phase.name}"] = ranks.clip_gradients(phase.parameters, clip_norm)
            scaler.step(phase.optimizer) if is_scaled else phase.update()
            phase.average.update()
        scaler.update()
        task.after_step(step)
        yield StepDone(step, values, weight)


def weight_of(batch: Any) -> int:
    """Return a batch's weight in a mean over batches: its targets if its loss is a mean over them, else its examples.

    Batches of sentences have different numbers of words: a mean of their means would favour the words of short ones.
    """
    return getattr(batch, "num_targets", None) or batch[0].shape[0]


class Phase:
    """A network, its optimizer and the average of its weights."""

    def __init__(self, name: str, task: Task, optimizer: torch.optim.Optimizer, average: Average | NoAverage):
        self.name, self.network, self.optimizer, self.average = name, getattr(task, name), optimizer, average
        self.update = bare_step(optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.all_parameters = list(task.parameters())  # another phase's backward may have left gradients here
        self.freezing = Freezing(self.network, optimizer.param_groups)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def start(self, scale: float, step: int) -> None:
        self.freezing.at(step)
        for parameter in self.all_parameters:
            parameter.grad = None
        for group in self.optimizer.param_groups:
            group["lr"] = scale * group["initial_lr"]


class Guard:
    """Stops every update whose loss, over all ranks, is not finite.

    On a CPU the loss is read at once, which costs nothing. On a GPU a read would wait for the device at every step. So
    fused optimizers get a flag on the device that makes them skip this update and all that follow, and `check` reads it
    when values are read anyway. If an optimizer cannot skip, the guard waits for the device. A gradient scaler skips
    updates with infinite gradients itself; the guard still checks the unscaled loss, and a scale that has fallen to 0.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer], scaler: torch.amp.GradScaler | None = None):
        groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        device = groups[0]["params"][0].device
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.reads = device.type == "cpu" or not (self.scaler or all(group.get("fused") for group in groups))
        self.bad_step = torch.zeros((), dtype=torch.float64, device=device)
        self.skip = torch.zeros((), dtype=torch.float32, device=device)
        if not self.reads and self.scaler is None:
            for optimizer in optimizers.values():
                optimizer.grad_scale, optimizer.found_inf = None, self.skip  # type: ignore[attr-defined]

    def admit(self, loss: Tensor, step: int, lr_scale: float) -> None:
        """Raise DivergedError before the update if the loss can be read, otherwise note it on the device."""
        if self.reads:
            value = loss.item()  # waits for the device only if a GPU optimizer is not fused
            if not math.isfinite(value):
                raise diverged(step, value, lr_scale)
            return
        is_bad = (~torch.isfinite(loss.detach())).double()
        self.bad_step.add_(is_bad * step * (1 - self.skip))
        self.skip.copy_(torch.maximum(self.skip, is_bad.float()))

    def check(self) -> None:
        """Raise DivergedError if a loss was not finite. Waits for the device: call it where values are read."""
        if not self.reads and self.skip.item():
            raise diverged(int(self.bad_step.item()), math.nan, None)
        if self.scaler is not None and self.scaler.get_scale() < SMALLEST_SCALE:
            raise DivergedError(
                f"the gradients overflow fp16 at every step: the loss scale has fallen to {self.scaler.get_scale():g}",
                hint="runtime.precision=bf16 or fp32 can hold them; a smaller optimizer.lr may help too.",
            )


def diverged(step: int, value: float, lr_scale: float | None) -> DivergedError:
    at = "" if lr_scale is None else f", at {lr_scale:.3g} of optimizer.lr"
    return DivergedError(
        f"the loss is {value} at step {step}{at}; the update was not made",
        hint="Use a smaller optimizer.lr, schedule.warmup=100 or regularization.clip_norm=1.0",
    )


def add_values(values: Values, new: Values, share: float) -> None:
    """Add a micro-batch's values to the batch's: means by their share, answers one after the other."""
    for name, value in new.items():
        before = values.get(name)
        if isinstance(value, Answers):
            values[name] = join([before, value]) if isinstance(before, Answers) else value
        else:
            values[name] = value * share if before is None else before + value * share  # type: ignore[operator]


def join(answers: Sequence[Answers]) -> Answers:
    """Join the answers of several batches."""
    logits, labels = zip(*answers, strict=True)
    return Answers(torch.cat(logits), torch.cat(labels))


def mean(value: Value) -> float:
    """Return the number to record for a value of one step. Waits for the device."""
    return value.is_right().double().mean().item() if isinstance(value, Answers) else value.item()


@torch.no_grad()
def evaluate(
    task: Task,
    source: Iterable[Any],
    *,
    autocast: Callable[[], Any] = nullcontext,
    averages: Mapping[str, Average | NoAverage] | None = None,
    ranks: SingleProcess | Ranks = SINGLE_PROCESS,
) -> dict[str, float]:
    """Score the task on held-out data, with the averaged weights if there are any; the task does not change.

    source: this rank's share of the examples if the task's scores are means, otherwise all of them.
    """
    was_training = task.training
    task.eval()
    try:
        with ExitStack() as stack:
            for average in (averages or {}).values():
                stack.enter_context(average.in_place())
            stack.enter_context(autocast())
            if has_mean_scores(task):
                return task.evaluate(source, pool=ranks.all_reduce_data)
            return ranks.broadcast(task.evaluate(source))
    finally:
        task.train(was_training)


def has_mean_scores(task: Task) -> bool:
    """Return whether the task's scores are means over examples, so that each rank may see a share of them."""
    return type(task).evaluate is Task.evaluate and type(task).statistics is Task.statistics


def has_statistics(task: Task) -> bool:
    """Return whether the task's scores are computed only from what each example adds to `statistics`."""
    return type(task).evaluate is Task.evaluate and type(task).statistics is not Task.statistics
