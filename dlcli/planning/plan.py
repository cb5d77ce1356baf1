"""What a training will take, measured on some of its own steps before it is begun: time, memory, disk.

Real batches go through the real loop, a few of the held-out ones through the real evaluation, and one checkpoint is
serialised; the rest is arithmetic. Nothing is kept: no run folder, no file, no weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import ceil, lcm
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as tensors_to_bytes

from dlcli.config.settings import seconds
from dlcli.datasets.batches.source import EvalSource
from dlcli.errors import ConfigError
from dlcli.optimizers.schedules import Position
from dlcli.runtime.device import compile_faults, memory_faults, wait_for
from dlcli.runtime.random import random_tensors, unchanged_random
from dlcli.runtime.signals import Signals
from dlcli.training import loop
from dlcli.training.allow_list import Builder
from dlcli.training.clock import close
from dlcli.training.metric_buffer import MetricBuffer, answers_per_step
from dlcli.training.parts import Assembly
from dlcli.training.state import Progress, gather

Tree = dict[str, Any]

WARM_UP = 3  # steps left out: kernels are chosen, memory is asked for, workers start
MEASURED_S = 1.0  # quick steps and evaluations are measured for so long: twenty steps of 2 ms say little
MOST_MEASURED = 500  # steps
CLOSING_S = 1.0  # curves, summary, exit: 0.8 to 1.2 s of digits and mnist on the two cores of tests/bench/RESULTS.md
DRIFT = 1.1  # a run's steps against those of its first second: 0.97 to 1.12 times as long there, by what else ran
DRAWING_MB = 35  # that the curves at the end add to a process: 607 MB against 572 for digits
PLAIN_BYTES = 600  # of checkpoint.json beside config and settings: digests, names, positions
EVALUATION_BYTES = 110  # that each evaluation adds to every later checkpoint.json
LOW_QUANTILE, HIGH_QUANTILE = 0.1, 0.9  # of the steps: both ends of the range


@dataclass(frozen=True)
class Forecast:
    """Seconds of the parts of one run, at the mean speed; memory and disk in MB of 2^20 bytes.

    low_s, high_s: total_s if every step took as long as the quickest or the slowest tenth of those measured, or a tenth
    longer than their mean, which a busy machine does to a long run. Under trainer.max_time these hardly differ, and
    `steps` is what fits; epochs_low, epochs_high say how many epochs do at either speed. peak_memory_mb: of the device
    where it has memory of its own, otherwise of this process so far and the drawing of curves. disk_mb: of as many
    checkpoints as the run keeps at most. start_s: of the process (where the caller knows it), the build, and what the
    first steps take longer. load: programs that ran on this machine in the minute before, on average.
    """

    steps: int
    steps_per_epoch: int
    epochs: float
    epochs_low: float
    epochs_high: float
    parameters: int
    measured_steps: int
    step_s: float
    step_low_s: float
    step_high_s: float
    examples_per_s: float
    evaluations: int
    saves: int
    start_s: float
    train_s: float
    evaluation_s: float
    saving_s: float
    closing_s: float
    total_s: float
    low_s: float
    high_s: float
    limit_s: float | None
    peak_memory_mb: float
    checkpoint_mb: float
    kept_checkpoints: int
    disk_mb: float
    train_examples: int
    val_examples: int
    test_examples: int
    device: str
    device_name: str
    precision: str
    threads: int
    load: float


def forecast(tree: Tree, builder: Builder, *, steps: int = 20, before_s: float = 0.0) -> Forecast:
    """Measure at least so many steps of the training that a composed config describes, and reckon the whole of it.

    before_s: seconds that a run's process takes before its network is built, such as `seconds_since_start()`. Raises
    ConfigError for what is not measured (a task with a teacher, several devices), DivergedError where the loss is no
    number within these steps, EnvironmentFault where memory does not suffice: the run itself would do the same.
    """
    check_measurable(tree)
    load = os.getloadavg()[0]
    began = time.perf_counter()
    parts = Assembly(tree, Signals(), builder=builder)
    built_s = time.perf_counter() - began
    with memory_faults(parts.memory_remedy), compile_faults():
        pace = measure_steps(parts, steps)
        example_s = measure_evaluation(parts)
        saving = measure_saving(parts)
    costs = Costs(
        start_s=before_s + built_s + pace.warm_up_s,
        val_s=example_s * parts.val_source.num_examples,
        test_s=example_s * parts.test_source.num_examples,
        saving=saving,
    )
    return reckon(parts, pace, costs, load)


def check_measurable(tree: Tree) -> None:
    """Raise ConfigError for a config whose steps one process with nothing but data and a config cannot make."""
    if "teacher" in tree["task"]:
        raise ConfigError("a task with a teacher is not planned", hint="Plan the network alone: task=classification")
    if (devices := tree["runtime"]["devices"]) > 1:
        message = f"runtime.devices={devices}: a plan is measured on one device, and steps of several take other times"
        raise ConfigError(message, hint="Plan it with runtime.devices=1")


def seconds_since_start() -> float:
    """Seconds since this process was started, to 10 ms; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since the machine's start
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    return 0.0


# ----------------------------------------------------------------------------------------------------------- measuring


class Pace(NamedTuple):
    """seconds: of each step after the warm-up; warm_up_s: the extra time of the warm-up steps."""

    seconds: list[float]
    warm_up_s: float

    def at(self, share: float) -> float:
        """The step time that so large a share of the steps stays below."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure_steps(parts: Assembly, least: int) -> Pace:
    """The times of training's steps, waiting for data included; the device is waited for at each, which training does
    not: on a GPU a step of a tiny network is a little quicker than this says.
    """
    device = parts.runtime.device
    tally, progress = MetricBuffer(answers_per_step(parts.tree), parts.ranks), Progress()
    times: list[float] = []
    batches = parts.task.stream(parts.train_source, 0)
    steps = train(parts, batches)
    try:
        while len(times) < least + WARM_UP or (sum(times) < MEASURED_S and len(times) < MOST_MEASURED):
            began = time.perf_counter()
            tally.pending.append(next(steps))
            if len(tally.pending) >= tally.most_pending:
                tally.fold(progress)
            wait_for(device)
            times.append(time.perf_counter() - began)
    finally:
        close(steps)
        close(batches)
    warm_up, measured = times[:WARM_UP], times[WARM_UP:]
    return Pace(measured, max(0.0, sum(warm_up) - WARM_UP * statistics.fmean(measured)))


def train(parts: Assembly, batches: Iterator[list[Any]]) -> Iterator[loop.StepDone]:
    """The steps that the run itself would make."""
    per_epoch = parts.train_source.steps_per_epoch
    num_steps = wanted_steps(parts.tree, per_epoch) or per_epoch
    return loop.train(
        parts.task,
        batches,
        parts.optimizers,
        lr_scale=lambda step: parts.schedule(Position(step, num_steps, per_epoch)),
        penalties=parts.penalties,
        clip_norm=parts.tree["regularization"]["clip_norm"],
        autocast=parts.runtime.autocast(),
        scaler=parts.scaler,
        averages=parts.averages,
        guard=parts.guard,
    )


def measure_evaluation(parts: Assembly) -> float:
    """Seconds per held-out example, from about a second of validation batches; of a task whose score is one of the
    whole set, from all of them. The first batch is of the test split, whose batches are the largest: memory must do.
    """
    if not loop.has_mean_scores(parts.task):
        return evaluate(parts, parts.val_source) / parts.val_source.num_examples
    evaluate(parts, parts.test_source, 1)
    first_s = evaluate(parts, parts.val_source, 1)
    count = max(1, min(len(parts.val_source), int(MEASURED_S / first_s)))
    num_examples = min(parts.val_source.num_examples, count * parts.val_source.batch_size)
    return evaluate(parts, parts.val_source, count) / num_examples


def evaluate(parts: Assembly, source: EvalSource, num_batches: int | None = None) -> float:
    """Seconds of an evaluation on the source's first batches, None for all. Half the batch where memory is too small,
    as in a run.
    """
    while True:
        batches = iter(source)
        began = time.perf_counter()
        try:
            with unchanged_random(parts.runtime.device):
                first: Iterable[Any] = islice(batches, num_batches)
                loop.evaluate(parts.task, first, autocast=parts.runtime.autocast(), averages=parts.averages)
            wait_for(parts.runtime.device)
            return time.perf_counter() - began
        except torch.OutOfMemoryError:
            if source.batch_size == 1:
                raise
        finally:
            close(batches)
        source.halve()


class Saving(NamedTuple):
    """snapshot_s: that training waits for; write_s: serialising and hashing beside it, without the disk; bytes: of the
    two files of tensors and of what checkpoint.json says at the first evaluation.
    """

    snapshot_s: float
    write_s: float
    bytes: int


def measure_saving(parts: Assembly) -> Saving:
    """One checkpoint of the training as it is now, made in memory."""
    began = time.perf_counter()
    weights, state, groups = gather(parts.task, parts.averages, parts.optimizers)
    state |= random_tensors(parts.runtime.device)
    taken = time.perf_counter()
    num_bytes = 0
    for tensors in (weights, state):
        data = tensors_to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
        num_bytes += len(data)
        hashlib.sha256(data)
    written = time.perf_counter()
    body = [parts.tree, groups, parts.environment, parts.data.classes, parts.data.fingerprints()]
    num_bytes += PLAIN_BYTES + len(json.dumps(body, separators=(",", ":"), default=str))
    return Saving(taken - began, written - taken, num_bytes)


# ----------------------------------------------------------------------------------------------------------- reckoning


class Costs(NamedTuple):
    """Seconds: to the first step; of one evaluation on each split; of a checkpoint."""

    start_s: float
    val_s: float
    test_s: float
    saving: Saving


class Course(NamedTuple):
    """A whole training at one speed: how many steps, evaluations and checkpoints, and the seconds of each."""

    steps: int
    evaluations: int
    saves: int
    train_s: float
    evaluation_s: float
    saving_s: float


def reckon(parts: Assembly, pace: Pace, costs: Costs, load: float) -> Forecast:
    """The whole from its parts."""
    tree, per_epoch = parts.tree, parts.train_source.steps_per_epoch
    step_s = statistics.fmean(pace.seconds)
    low_s, high_s = min(step_s, pace.at(LOW_QUANTILE)), max(step_s, pace.at(HIGH_QUANTILE))
    speeds = (step_s, low_s, max(high_s, DRIFT * step_s))
    middle, quick, slow = (course(tree, per_epoch, each, costs) for each in speeds)
    total, low, high = (costs.start_s + sum(each[3:]) + CLOSING_S for each in (middle, quick, slow))
    kept = min(middle.saves, tree["trainer"]["keep_checkpoints"] + 1)  # the best besides
    checkpoint_mb = (costs.saving.bytes + middle.evaluations * EVALUATION_BYTES) / 2**20
    limit = tree["trainer"]["max_time"]
    return Forecast(
        steps=middle.steps,
        steps_per_epoch=per_epoch,
        epochs=middle.steps / per_epoch,
        epochs_low=slow.steps / per_epoch,
        epochs_high=quick.steps / per_epoch,
        parameters=sum(p.numel() for p in parts.task.parameters()),
        measured_steps=len(pace.seconds),
        step_s=step_s,
        step_low_s=low_s,
        step_high_s=high_s,
        examples_per_s=parts.train_source.num_examples / per_epoch / step_s,
        evaluations=middle.evaluations,
        saves=middle.saves,
        start_s=costs.start_s,
        train_s=middle.train_s,
        evaluation_s=middle.evaluation_s,
        saving_s=middle.saving_s,
        closing_s=CLOSING_S,
        total_s=total,
        low_s=min(low, total),
        high_s=max(high, total),
        limit_s=seconds(limit) if limit else None,
        peak_memory_mb=parts.runtime.peak_memory_mb() + DRAWING_MB * (parts.runtime.device.type == "cpu"),
        checkpoint_mb=checkpoint_mb,
        kept_checkpoints=kept,
        disk_mb=kept * checkpoint_mb,
        train_examples=parts.train_source.num_examples,
        val_examples=parts.val_source.num_examples,
        test_examples=parts.test_source.num_examples,
        device=str(parts.runtime.device),
        device_name=parts.runtime.device_name(),
        precision=parts.runtime.precision,
        threads=parts.runtime.threads,
        load=load,
    )


def wanted_steps(tree: Tree, per_epoch: int) -> int | None:
    """The steps of the whole run, as Training plans them; None if only the clock decides."""
    trainer = tree["trainer"]
    return trainer["max_steps"] or (None if trainer["max_time"] else trainer["epochs"] * per_epoch)


def course(tree: Tree, per_epoch: int, step_s: float, costs: Costs) -> Course:
    """A training whose steps take `step_s` each."""
    trainer = tree["trainer"]
    interval = trainer["eval_every"] or per_epoch
    save_every = trainer["save_every"]
    spare_s = min(interval, save_every or interval) * step_s  # until the next checkpoint: writing hides in there
    save_s = costs.saving.snapshot_s + max(0.0, costs.saving.write_s - spare_s)
    steps = wanted_steps(tree, per_epoch)
    if trainer["max_time"]:
        fitting = fitting_steps(seconds(trainer["max_time"]), step_s + (costs.val_s + save_s) / interval, costs.val_s)
        steps = min(steps or fitting, fitting)
    assert steps is not None
    evaluations = ceil(steps / interval)
    saves = num_saves(steps, interval, save_every)
    return Course(
        steps,
        evaluations,
        saves,
        train_s=steps * step_s,
        evaluation_s=evaluations * costs.val_s + costs.test_s,
        saving_s=saves * save_s + costs.saving.write_s,  # the last one is waited for
    )


def fitting_steps(limit_s: float, step_s: float, last_s: float) -> int:
    """Steps that fit into a time limit, each with its share of evaluations and checkpoints; last_s is kept back."""
    return max(1, int((limit_s - last_s) / step_s))


def num_saves(steps: int, interval: int, save_every: int | None) -> int:
    """Checkpoints written at most: one at every evaluation that turns out the best, and every `save_every` steps."""
    evaluations = ceil(steps / interval)
    if not save_every:
        return evaluations
    both = steps // lcm(interval, save_every) + (steps % interval > 0 and steps % save_every == 0)
    return evaluations + steps // save_every - both
