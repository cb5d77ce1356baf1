"""Settings proposed from measurements on the real network and data: batch size, learning rate, data workers.

Each function takes a composed config and gives (rows to show, the `key=value` words proposed, why). Nothing is kept:
no run, no weights.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from dlcli.datasets.batches.residency import free_memory
from dlcli.errors import ConfigError, DivergedError, EnvironmentFault
from dlcli.runtime.device import memory_faults
from dlcli.runtime.signals import Signals
from dlcli.training import build, checks, loop
from dlcli.training.allow_list import Builder
from dlcli.training.parts import Assembly

Tree = dict[str, Any]

SMALLEST_BATCH, LARGEST_BATCH = 8, 65_536
ENOUGH = 0.95  # of the best speed: the smallest batch that has it is proposed, since more of them are steps
MEASURED_S = 1.0  # of steps, for one row
LR_STEPS, LEAST_LR, MOST_LR = 100, 1e-6, 10.0
SMOOTHING = 0.9  # of the loss in the range test
BLOWN_UP = 4.0  # times the best loss, where the range test ends


@dataclass(frozen=True)
class Proposal:
    """rows: as measured, each name -> value; words: `key=value` to train with; why: one sentence."""

    rows: list[dict[str, Any]]
    words: list[str]
    why: str


def tune(what: str, tree: Tree, builder: Builder) -> Proposal:
    """what: batch, lr or workers. Raises ConfigError for a task that takes more than data and a config."""
    if "teacher" in tree["task"]:
        raise ConfigError("a task with a teacher is not tuned", hint="Tune the network alone: task=classification")
    measure = {"batch": tune_batch, "lr": tune_lr, "workers": tune_workers}[what]
    return measure(tree, builder)


# ------------------------------------------------------------------------------------------------------ the batch size


def tune_batch(tree: Tree, builder: Builder) -> Proposal:
    """The smallest dataset.batch_size within 5 % of the best speed, in examples per second; sizes double.

    Memory is that of the device, where it has its own. Ends where memory does, or where two sizes brought no speed.
    """
    parts = Assembly(tree, Signals(), builder=builder)
    rows: list[dict[str, Any]] = []
    size = SMALLEST_BATCH
    while size <= min(LARGEST_BATCH, parts.train_source.num_examples):
        try:
            row = _batch_row(parts, size)
        except EnvironmentFault:
            rows.append({"batch_size": size, "examples_per_s": None, "step_ms": None, "memory_mb": None})
            break
        rows.append(row)
        if _is_past_the_best(rows) or _is_nearly_full(parts, rows):
            break
        size *= 2
    measured = [row for row in rows if row["examples_per_s"]]
    best = max(row["examples_per_s"] for row in measured)
    chosen = next(row for row in measured if row["examples_per_s"] >= ENOUGH * best)
    now, size = tree["dataset"]["batch_size"], chosen["batch_size"]
    why = f"{chosen['examples_per_s']:,.0f} examples a second; larger batches bring less than 5 % more"
    if size != now:
        why += f". It is {now} now: another batch size wants another learning rate, see  dlcli tune lr"
    return Proposal(rows, [f"dataset.batch_size={size}"], why)


def _batch_row(parts: Assembly, size: int) -> dict[str, Any]:
    tree = parts.tree | {"dataset": parts.tree["dataset"] | {"batch_size": size}}
    device = parts.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with memory_faults(lambda: ""):
        batch = checks.made_up_batch(tree, device)
        task = copy.deepcopy(parts.task)
        optimizers = build.build_optimizers(parts.builder, tree, task, parts.runtime)
        steps = loop.train(task, _always([batch]), optimizers, autocast=parts.runtime.autocast())
        step_s = _seconds_each(steps, device)
    return {
        "batch_size": size,
        "examples_per_s": size / step_s,
        "step_ms": 1e3 * step_s,
        "memory_mb": parts.runtime.peak_memory_mb(),
    }


def _is_past_the_best(rows: list[dict[str, Any]]) -> bool:
    """Two doublings in a row that brought nothing."""
    speeds = [row["examples_per_s"] for row in rows]
    return len(speeds) > 2 and max(speeds[-2:]) < max(speeds[:-2]) / ENOUGH


def _is_nearly_full(parts: Assembly, rows: list[dict[str, Any]]) -> bool:
    """On a CPU the system would kill the process rather than say no: stop before the next doubling could fill it."""
    free = free_memory(parts.runtime.device)
    grown_mb = rows[-1]["memory_mb"] - rows[0]["memory_mb"]
    return parts.runtime.device.type == "cpu" and free is not None and 3 * grown_mb * 2**20 > free


# --------------------------------------------------------------------------------------------------- the learning rate


def tune_lr(tree: Tree, builder: Builder) -> Proposal:
    """The learning rate at which the loss falls fastest, by a range test (Smith 2017, section 3.3).

    The rate grows from 1e-6 to 10, the same factor at each of 100 steps, until the smoothed loss is four times its
    best. Proposed is the rate of the steepest fall against the logarithm of the rate.
    """
    tree = tree | {"regularization": tree["regularization"] | {"ema": None}}
    parts = Assembly(tree, Signals(), builder=builder)
    first = next(iter(parts.optimizers.values())).param_groups[0]["lr"]
    lrs = [LEAST_LR * (MOST_LR / LEAST_LR) ** (i / (LR_STEPS - 1)) for i in range(LR_STEPS)]
    steps = loop.train(
        parts.task,
        parts.task.stream(parts.train_source, 0),
        parts.optimizers,
        lr_scale=lambda step: lrs[min(step, LR_STEPS - 1)] / first,
        penalties=parts.penalties,
        clip_norm=tree["regularization"]["clip_norm"],
        autocast=parts.runtime.autocast(),
        scaler=parts.scaler,
    )
    losses = list(_range_of_losses(islice(steps, LR_STEPS)))
    slopes = {i: losses[i + 1] - losses[i - 1] for i in range(1, len(losses) - 1)}
    lowest = min(range(len(losses)), key=losses.__getitem__)
    falling = {i: slope for i, slope in slopes.items() if i <= lowest}
    chosen = _rounded(lrs[min(falling, key=falling.__getitem__)]) if falling else first
    shown = range(0, len(losses), max(1, len(losses) // 20))
    rows = [{"lr": lrs[i], "loss": losses[i]} for i in shown]
    now = tree["optimizer"]["lr"]
    why = f"the loss falls fastest there and is lowest at {lrs[lowest]:.1e}; it is {now:g} now"
    return Proposal(rows, [f"optimizer.lr={chosen:g}"], why)


def _range_of_losses(steps: Iterator[loop.StepDone]) -> Iterator[float]:
    """The loss of each step, smoothed without the bias of its start; ends where it blows up."""
    smoothed, best = 0.0, math.inf
    try:
        for done in steps:
            own = [loop.mean(v) for name, v in done.values.items() if name == "loss" or name.startswith("loss/")]
            smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * sum(own)
            loss = smoothed / (1 - SMOOTHING**done.step)
            best = min(best, loss)
            yield loss
            if loss > BLOWN_UP * best:
                return
    except DivergedError:
        return


def _rounded(number: float) -> float:
    return float(f"{number:.0e}") if number < 1 else round(number, 1)


# --------------------------------------------------------------------------------------------------- the data's workers


def tune_workers(tree: Tree, builder: Builder) -> Proposal:
    """The fewest dataset.num_workers that keep up with the network; 0 if the images are on the device.

    Each row reads for about a second after its first batch, which starts the workers.
    """
    parts = Assembly(tree, Signals(), builder=builder)
    task = copy.deepcopy(parts.task)
    optimizers = build.build_optimizers(builder, tree, task, parts.runtime)
    batch = checks.made_up_batch(tree, parts.runtime.device)
    step_s = _seconds_each(
        loop.train(task, _always([batch]), optimizers, autocast=parts.runtime.autocast()), parts.runtime.device
    )
    rows = [_workers_row(parts, None, step_s)] if parts.train_source.kind == "resident" else []
    for workers in (0, 1, 2, 4, 8, 16):
        if workers <= torch.get_num_threads() * 2 or workers <= 2:
            rows.append(_workers_row(parts, workers, step_s))
    enough = [row for row in rows if row["step_share"] <= 0.1 or row["workers"] == "resident"]
    chosen = enough[0] if enough else max(rows, key=lambda row: row["batches_per_s"])
    if chosen["workers"] == "resident":
        words = ["dataset.num_workers=0", "dataset.in_memory=auto"]
        return Proposal(rows, words, "the images fit in memory, where no process is needed to read them")
    words = [f"dataset.num_workers={chosen['workers']}", "dataset.in_memory=false"]
    bound = "data and network overlap" if enough else "the data stay the slower side"
    return Proposal(rows, words, f"{chosen['batches_per_s']:,.0f} batches a second, {1 / step_s:,.0f} taken: {bound}")


def _workers_row(parts: Assembly, workers: int | None, step_s: float) -> dict[str, Any]:
    """workers: None for images that live on the device."""
    settings = {"num_workers": workers or 0, "in_memory": workers is None}
    tree = parts.tree | {"dataset": parts.tree["dataset"] | settings}
    train, _, _ = build.split_training(tree, parts.data)
    source, _ = build.build_train_source(parts.builder, tree, parts.data.train, train, parts.runtime.device)
    batches = source.from_step(0)
    try:
        batch_s = _seconds_each(batches, parts.runtime.device)
    finally:
        batches.close()  # type: ignore[attr-defined]
    waits_s = batch_s if not workers else max(0.0, batch_s - step_s)  # workers read while the network computes
    name = "resident" if workers is None else workers
    return {"workers": name, "batches_per_s": 1 / batch_s, "step_share": waits_s / (waits_s + step_s)}


# ----------------------------------------------------------------------------------------------------------- measuring


def _seconds_each(items: Iterator[Any], device: torch.device) -> float:
    """The median time of an item, after the first two."""
    times: list[float] = []
    for _ in islice(items, 2):
        _wait_for(device)
    while sum(times) < MEASURED_S and len(times) < 200:
        began = time.perf_counter()
        next(items)
        _wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _always(item: Any) -> Iterator[Any]:
    while True:
        yield item
