"""CPU time per step of `dlcli train`, with everything a user has by default, against a bare PyTorch loop.

The network is an MLP 784-64-10 on MNIST at batch 64 with SGD, one thread: so small that what a runner adds is seen.
Both sides are run in turn in one process, on the same uint8 tensors. Two bare loops: one as people write it, and one
that takes its batches by dlcli's own fast way (index_select, one product and one sum), so that only the loop differs.
dlcli's side has the Rich table on a pseudo-terminal, the event file, and W&B offline in its own process; evaluation and
saving are timed apart, they belong to no step.
"""

from __future__ import annotations

import gc
import io
import os
import pty
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.config import compose_command
from dlcli.reporting.rich_display import RichDisplay
from dlcli.reporting.wandb_tracker import new_run_id, start_follower
from dlcli.runs.events import Recorder
from dlcli.runs.folder import RunFolder
from dlcli.runtime.signals import Signals
from dlcli.training.allow_list import Builder
from dlcli.training.trainer import Training

STEPS = 2_000
ROUNDS = 10
TINY = (
    "mnist", "model=mlp", "model.hidden=[64]", "optimizer=sgd", "optimizer.lr=0.01", "regularization=none",
    "trainer.eval_every=1000000", "dataset.val_size=1000", "runtime=cpu", "runtime.threads=1",
)  # fmt: skip
WORDS = (*TINY, f"trainer.max_steps={STEPS}")


class Timed(Training):
    """Notes the CPU seconds of evaluation and saving."""

    between_s = 0.0

    def evaluate_and_save(self) -> None:
        start = time.process_time()
        super().evaluate_and_save()
        self.between_s += time.process_time() - start


@contextmanager
def reporting(tree: dict[str, Any], outputs: Path, kind: type[Training] = Training) -> Iterator[Training]:
    """A training ready to run, with all that a user sees by default: on a terminal, with events and W&B offline."""
    run = RunFolder.create(outputs, "bench")
    run.checkpoints.mkdir()
    master, slave = pty.openpty()
    reader = subprocess.Popen(
        ["cat"], stdin=master, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # the terminal is no part of dlcli
    os.close(master)
    with open(slave, "w") as screen:
        display = RichDisplay(screen)
        recorder = Recorder(run.events, display)
        recorder.emit(
            "run_started", run=str(run.path), name=run.name, experiment="bench", overrides=[], seed=0, config=tree
        )
        follower = start_follower(run.path, project="bench", mode="offline", run_id=new_run_id())
        facts = {"run": run.name, "experiment": "bench"}
        training = kind(tree, run, recorder, Signals(), builder=Builder.for_search(), facts=facts)
        recorder.emit("run_prepared", **training.describe())
        yield training
        recorder.emit("run_finished", status="completed", run=str(run.path), checkpoint=None, metrics={}, next=[])
        display.close()
        if follower:
            follower.finish(20)
    reader.wait()


def dlcli_us(tree: dict[str, Any], outputs: Path) -> float:
    """CPU microseconds per step, default reporting on."""
    with reporting(tree, outputs, Timed) as training:
        gc.collect()
        start = time.process_time()
        training.run()
        taken = time.process_time() - start - training.between_s
    return taken / STEPS * 1e6


def bare_us(training: Training, *, as_written: bool) -> float:
    """CPU microseconds per step of a hand-written loop on the same tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = training.data.train.images, training.data.train.labels
    assert images is not None
    prepare = written if as_written else training.train_source._supply.pixels.from_bytes
    gc.collect()
    start, step = time.process_time(), 0
    while step < STEPS:
        for rows in torch.randperm(len(labels)).split(64):
            x = prepare(images[rows] if as_written else images.index_select(0, rows))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels[rows])
            loss.backward()
            optimizer.step()
            step += 1
            if step == STEPS:
                break
    return (time.process_time() - start) / STEPS * 1e6


def written(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.1307) / 0.3081


def run() -> str:
    """CPU time per step of dlcli with its own data path and all reporting, against two bare loops."""
    torch.set_num_threads(1)
    tree = compose_command(list(WORDS)).tree
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        place = RunFolder.create(outputs, "overhead")
        place.checkpoints.mkdir()
        facts = {"run": "x", "experiment": "overhead"}
        screen = RichDisplay(io.StringIO())
        first = Training(
            tree, place, Recorder(place.events, screen), Signals(), builder=Builder.for_search(), facts=facts
        )
        rows = []
        for number in range(ROUNDS + 1):
            strict_before, written_us = bare_us(first, as_written=False), bare_us(first, as_written=True)
            ours = dlcli_us(tree, outputs)
            strict = (strict_before + bare_us(first, as_written=False)) / 2
            if number:  # the first round warms up
                rows.append((ours, strict, written_us, ours / strict, ours / written_us, strict_before / strict))
    ours, strict, by_hand, ratio, ratio_by_hand, floor = zip(*rows, strict=True)

    def line(what: str, us: tuple[float, ...], ratios: tuple[float, ...] | None) -> str:
        shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else ""
        return f"| {what} | {statistics.median(us):.0f} | {shown} |"

    return "\n".join(
        [
            f"{ROUNDS} paired rounds of {STEPS:,} steps, MLP 784-64-10, batch 64, SGD, one thread; CPU time, medians.",
            "",
            "| | us per step | dlcli against it: median (least to most) |",
            "|---|---|---|",
            line("dlcli: Rich table on a terminal, events, W&B offline, train accuracy, NaN guard", ours, None),
            line("bare loop that takes its batches by dlcli's way", strict, ratio),
            line("bare loop as people write it", by_hand, ratio_by_hand),
            line("noise floor: bare against bare", strict, floor),
        ]
    )
