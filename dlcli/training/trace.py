"""Profiles the steps of a training: a trace for the browser, and the most expensive operations by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

SKIPPED, WATCHED, NAMED = 5, 10, 5  # steps before the watched ones, which are not typical; steps; operations
Step = TypeVar("Step")


def profiled(
    steps: Iterator[Step], folder: Path, device: torch.device, *, most: int, tell: Callable[[str, str], None]
) -> Iterator[Step]:
    """Yield the same steps and profile some of the first; then call `tell(result, path)`.

    most: steps until something else than steps happens. folder: gets trace.json, for https://ui.perfetto.dev or
    chrome://tracing, and operations.txt, the whole table.
    """
    skipped = min(SKIPPED, max(0, most - 1))
    yield from islice(steps, skipped)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it says on stderr that there is no GPU
    watch = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])])
    watch.start()
    done = 0
    try:
        for step in islice(steps, min(WATCHED, most - skipped) - 1):
            done += 1
            yield step
        last = next(steps)  # handed on when the watch is over: what follows it may be an evaluation
        done += 1
    finally:  # also where the training ends before
        watch.stop()
        if done:
            tell(f"the most expensive operations of {done} steps: {report(watch, folder, device, done)}", where(folder))
    yield last
    yield from steps


def where(folder: Path) -> str:
    return f"{folder / 'trace.json'} for https://ui.perfetto.dev; {folder / 'operations.txt'} for all of them"


def report(watch: Any, folder: Path, device: torch.device, num_steps: int) -> str:
    """Write the trace and the table; return the most expensive operations in a line."""
    folder.mkdir(exist_ok=True)
    watch.export_chrome_trace(str(folder / "trace.json"))
    found = operations(watch, device)
    lines = [f"{100 * share:5.1f} %  {calls / num_steps:8.1f} calls a step  {name}" for name, share, calls in found]
    (folder / "operations.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share, _ in found[:NAMED])


def operations(watch: Any, device: torch.device) -> list[tuple[str, float, int]]:
    """Return (name, share of the time spent in the operation itself, calls), most expensive first."""
    on_gpu = device.type == "cuda"
    spent = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in watch.key_averages()
    }
    total = sum(us for us, _ in spent.values()) or 1.0
    ranked = sorted(spent.items(), key=lambda item: -item[1][0])
    return [(name, us / total, calls) for name, (us, calls) in ranked]
