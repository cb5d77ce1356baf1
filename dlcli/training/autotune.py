"""Chooses threads, memory format and precision, where the config leaves them open, by measured step time.

A few steps of a copy of the task are timed in each way. A small gain is not enough, since the choice changes the bits:
a format must save a tenth of the time, bfloat16 a seventh. A run too short to repay the measuring is left as it is.
The choice is recorded with the run, and a resume uses it again.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from dlcli.errors import DivergedError
from dlcli.runtime.device import Runtime
from dlcli.runtime.random import unchanged_random
from dlcli.tasks.task import Task
from dlcli.training.loop import StepDone

SHORT_S = 20.0  # a run shorter than this is not worth a second of measuring
SMALL_S = 2e-3  # a step shorter than this is too small to be shared by threads
GAIN = {
    "channels_last": 0.9,
    "bf16": 0.85,
    "threads": 0.9,
}  # the share of the time that a way must stay below to be chosen
MOST_STEPS, MOST_S = 5, 0.5  # of one measurement
ROUNDS = 2  # in turn, so that a busy moment hits all ways alike
Loop = Callable[[Task, Runtime], Iterator[StepDone]]


def choose(runtime: Runtime, settings: Mapping[str, Any], timer: Timer, steps: int) -> tuple[Runtime, str]:
    """Return the runtime to train with, and the reason; "" if nothing was left open. steps: of the whole run."""
    if runtime.device.type != "cpu":
        return on_gpu(runtime, settings)
    is_open = {key: settings[key] == "auto" for key in ("threads", "channels_last", "precision")}
    if not any(is_open.values()):
        return runtime, ""
    many, first = runtime, replace(runtime, threads=1) if is_open["threads"] else runtime
    alone_s = timer.seconds(first)
    if is_open["threads"] and many.threads > 1 and alone_s >= SMALL_S and alone_s * steps > SHORT_S / 10:
        first = timer.better(first, many, "threads")
    if alone_s * steps < SHORT_S:
        return first, f"{in_words(first)}: a run of {alone_s * steps:.1f} s is too short to try what is faster"
    best = first
    if is_open["channels_last"]:
        best = timer.better(best, replace(best, channels_last=True), "channels_last")
    if is_open["precision"]:
        halved = replace(first, precision="bf16", channels_last=is_open["channels_last"] or first.channels_last)
        best = timer.better(best, halved, "bf16")
    return best, f"{in_words(best)}: {1e3 * timer.seconds(best):.1f} ms a step; " + timer.others(best)


def on_gpu(runtime: Runtime, settings: Mapping[str, Any]) -> tuple[Runtime, str]:
    """Tensor cores read halves channels-last; without halves it is left alone."""
    if settings["channels_last"] != "auto":
        return runtime, ""
    chosen = replace(runtime, channels_last=runtime.precision in ("bf16", "fp16"))
    return chosen, f"{in_words(chosen)}: tensor cores" if chosen.channels_last else ""


def in_words(runtime: Runtime) -> str:
    words = [runtime.precision, *(["channels-last"] if runtime.channels_last else [])]
    if runtime.device.type == "cpu":
        words.append(f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}")
    return ", ".join(words)


class Cost(NamedTuple):
    """The time of a step, in seconds."""

    wall_s: float
    cpu_s: float


class Timer:
    """Measures the seconds of a step in each way.

    loop: (task, runtime) -> training of that task, for ever, on batches of the right shape.
    """

    def __init__(self, task: Task, loop: Loop):
        self.task, self.loop = task, loop
        self.measured: dict[Runtime, Cost] = {}

    def seconds(self, runtime: Runtime) -> float:
        return self.cost(runtime).wall_s

    def cost(self, runtime: Runtime) -> Cost:
        if runtime not in self.measured:
            self.measured[runtime] = self._measure(runtime)
        return self.measured[runtime]

    def better(self, held: Runtime, other: Runtime, gain: str) -> Runtime:
        """`other` where it is faster than `held` by enough: threads by the clock, for they may wait for one another;
        the rest by the processor's time, which a busy machine disturbs less.
        """
        for _ in range(ROUNDS - 1):
            for runtime in (held, other):
                again = zip(self.cost(runtime), self._measure(runtime), strict=True)
                self.measured[runtime] = Cost(*map(min, again))
        kind = 0 if gain == "threads" else 1
        return other if self.cost(other)[kind] <= GAIN[gain] * self.cost(held)[kind] else held

    def others(self, chosen: Runtime) -> str:
        return "; ".join(
            f"{in_words(r)} {1e3 * cost.wall_s:.1f} ms" for r, cost in self.measured.items() if r != chosen
        )

    def _measure(self, runtime: Runtime) -> Cost:
        """Return the median of a few steps after a first one; the task and all random numbers do not change."""
        torch.set_num_threads(runtime.threads)
        times: list[Cost] = []
        with unchanged_random(runtime.device):
            task = copy.deepcopy(self.task)
            runtime.place(task)
            steps = self.loop(task, runtime)
            try:
                next(steps)
                while len(times) < MOST_STEPS and sum(cost.wall_s for cost in times) < MOST_S:
                    began, cpu_began = time.perf_counter(), time.process_time()
                    next(steps)
                    times.append(Cost(time.perf_counter() - began, time.process_time() - cpu_began))
            except DivergedError:  # on synthetic data, in this precision
                return Cost(float("inf"), float("inf"))
        return Cost(*map(statistics.median, zip(*times, strict=True)))
