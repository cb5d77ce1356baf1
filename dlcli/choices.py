"""How the device computes where the config leaves it open: threads, memory format, precision, by measured step time.

A few steps of a copy of the task are timed in each way. What gains too little is not chosen, since it would change the
bits for nothing: a format must save a tenth of the time, bfloat16 a seventh. A run too short to repay the measuring is
left as it is. The choice is recorded with the run, and a resume takes it from there.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from dlcli.errors import DivergedError
from dlcli.loop import StepDone
from dlcli.runtime import Runtime, unchanged_random
from dlcli.tasks.task import Task

SHORT_S = 20.0  # a run shorter than this is not worth a second of measuring
SMALL_S = 2e-3  # a step shorter than this is too small to be shared by threads
GAIN = {"channels_last": 0.9, "bf16": 0.85, "threads": 0.9}  # a way is chosen when it takes at most so much of the time
MOST_STEPS, MOST_S = 5, 0.5  # of one measurement
ROUNDS = 2  # in turn, so that a busy moment hits all ways alike
Loop = Callable[[Task, Runtime], Iterator[StepDone]]


def choose(runtime: Runtime, settings: Mapping[str, Any], timer: Timer, steps: int) -> tuple[Runtime, str]:
    """The runtime to train with, and why in one clause; empty where nothing was left open. steps: of the whole run."""
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
        return first, f"{told(first)}: a run of {alone_s * steps:.1f} s is too short to try what is faster"
    best = first
    if is_open["channels_last"]:
        best = timer.better(best, replace(best, channels_last=True), "channels_last")
    if is_open["precision"]:
        halved = replace(first, precision="bf16", channels_last=is_open["channels_last"] or first.channels_last)
        best = timer.better(best, halved, "bf16")
    return best, f"{told(best)}: {1e3 * timer.seconds(best):.1f} ms a step; " + timer.others(best)


def on_gpu(runtime: Runtime, settings: Mapping[str, Any]) -> tuple[Runtime, str]:
    """Tensor cores read halves channels-last; without halves it is left alone."""
    if settings["channels_last"] != "auto":
        return runtime, ""
    chosen = replace(runtime, channels_last=runtime.precision in ("bf16", "fp16"))
    return chosen, f"{told(chosen)}: tensor cores" if chosen.channels_last else ""


def told(runtime: Runtime) -> str:
    words = [runtime.precision, *(["channels-last"] if runtime.channels_last else [])]
    if runtime.device.type == "cpu":
        words.append(f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}")
    return ", ".join(words)


class Timer:
    """Seconds of a step in each way.

    loop: (task, runtime) -> training of that task, for ever, on batches of the right shape.
    """

    def __init__(self, task: Task, loop: Loop):
        self.task, self.loop = task, loop
        self.measured: dict[Runtime, float] = {}

    def seconds(self, runtime: Runtime) -> float:
        if runtime not in self.measured:
            self.measured[runtime] = self._measure(runtime)
        return self.measured[runtime]

    def better(self, held: Runtime, other: Runtime, gain: str) -> Runtime:
        """`other` where it is faster than `held` by enough."""
        for _ in range(ROUNDS - 1):
            for runtime in (held, other):
                self.measured[runtime] = min(self.seconds(runtime), self._measure(runtime))
        return other if self.seconds(other) <= GAIN[gain] * self.seconds(held) else held

    def others(self, chosen: Runtime) -> str:
        return "; ".join(f"{told(r)} {1e3 * s:.1f} ms" for r, s in self.measured.items() if r != chosen)

    def _measure(self, runtime: Runtime) -> float:
        """The median of a few steps behind a first one; the task and all random numbers stay as they were."""
        torch.set_num_threads(runtime.threads)
        times: list[float] = []
        with unchanged_random(runtime.device):
            task = copy.deepcopy(self.task)
            runtime.place(task)
            steps = self.loop(task, runtime)
            try:
                next(steps)
                while len(times) < MOST_STEPS and sum(times) < MOST_S:
                    began = time.perf_counter()
                    next(steps)
                    times.append(time.perf_counter() - began)
            except DivergedError:  # on made-up data, in this precision
                return float("inf")
        return statistics.median(times)
